// What: the edge of a prefix among n tokens given by arrays of key, w = exp(d) and y = d / ln 2: the key of the last group of
//   tied tokens that a walk by descending key keeps, and the sums up to it.
// Contract: finite keys in any order; the arrays are reordered. Equal keys stay or go together.
// Idea: 1. take a pivot and add up the tokens at or above it; 2. the measure is monotone, so those sums tell on which side
//   the walk stops; 3. keep that side only, and go on; 4. at 24 tokens or fewer, sort and walk one group of ties after
//   the other.
// Who does what: one thread. Numbers: sums in float over 16 vectors, in double across. Randomness: none.
// Cost: about four looks at each token in all, a vector at a time. Limits: none; every round parts off at least one key.

#include "kernels.inl"

namespace fastdecode {
namespace FD_TARGET {

struct Edge {
  bool stopped = false;  // false: the walk met no edge, everything is kept
  float key = 0;         // the last key kept; INFINITY: none of these tokens is kept
  Sums kept;             // sums over the tokens kept
};

constexpr int kFew = 24;

FD_FN void add(Sums* sums, float w, float y) {
  sums->n += 1, sums->mass += double(w), sums->moment += double(w) * double(y) * kLn2;
}

FD_FN Sums plus(const Sums& a, const Sums& b) { return {a.n + b.n, a.mass + b.mass, a.moment + b.moment}; }

// Is the end of the walk among tokens with these sums? (Of a kStopBefore walk: can it be?)
FD_FN bool reaches(const Cut& cut, const Sums& part, const Sums& whole, double need) {
  const double so_far = measured(cut, part, whole);
  return int(cut.stop) == kStopAfter ? so_far >= need && part.n >= cut.keep : so_far > need && part.n > cut.keep;
}

// 1. The sums over the keys at or above the pivot, and the lowest of those keys.
static Sums sums_above(const Workspace& ws, int64_t n, float pivot, float* lowest) {
  D masses{}, moments{};
  int64_t count = 0;
  V low = all(INFINITY);
  for (int64_t first = 0; first < n; first += 16 * kLanes) {
    const int64_t end = first + 16 * kLanes < n ? first + 16 * kLanes : n;
    V mass = all(0.0f), moment = all(0.0f);
    for (int64_t i = first; i < end; i += kLanes) {
      const V key = load(ws.key + i);
      const I in = I(key >= pivot);
      const V w = V(I(load(ws.key_w + i)) & in);
      count += __builtin_popcount(bits_of(in));
      mass += w;
      moment += w * load(ws.key_y + i);
      low = -max_of(-low, V((I(-key) & in) | (I(all(-INFINITY)) & ~in)));
    }
    masses += pairs_of(mass), moments += pairs_of(moment);
  }
  *lowest = -largest_lane(-low);
  return {double(count), sum_of_lanes(masses), sum_of_lanes(moments) * kLn2};
}

struct Range {
  int64_t n;
  float low, high;
};

// 3. Keeps the keys at or above the pivot, or those below it.
static Range keep_side(const Workspace& ws, int64_t n, float pivot, bool above) {
  int64_t kept = 0;
  V high = all(-INFINITY), minus_low = all(-INFINITY);
  for (int64_t i = 0; i < n; i += kLanes) {  // what is written lies at or before what was read
    const V key = load(ws.key + i), w = load(ws.key_w + i), y = load(ws.key_y + i);
    const I in = above ? I(key >= pivot) : I(key < pivot) & I(key > -INFINITY);
    const uint32_t bits = bits_of(in);
    if (!bits) continue;
    pack(key, bits, ws.key + kept), pack(w, bits, ws.key_w + kept), pack(y, bits, ws.key_y + kept);
    kept += __builtin_popcount(bits);
    const I out = I(all(-INFINITY)) & ~in;
    high = max_of(high, V((I(key) & in) | out));
    minus_low = max_of(minus_low, V((I(-key) & in) | out));
  }
  return {kept, -largest_lane(minus_low), largest_lane(high)};
}

// 4. `so_far` are the sums over all tokens with larger keys, `last_key` the lowest of those keys.
static Edge walk(const Cut& cut, const Sums& whole, double need, const Workspace& ws, int64_t n, Sums so_far, float last_key) {
  float* key = ws.key;
  for (int64_t i = 1; i < n; ++i) {  // insertion sort, descending
    const float k = key[i], w = ws.key_w[i], y = ws.key_y[i];
    int64_t at = i;
    for (; at > 0 && key[at - 1] < k; --at) key[at] = key[at - 1], ws.key_w[at] = ws.key_w[at - 1], ws.key_y[at] = ws.key_y[at - 1];
    key[at] = k, ws.key_w[at] = w, ws.key_y[at] = y;
  }
  Edge edge{false, last_key, so_far};
  for (int64_t i = 0; i < n;) {
    Sums through = edge.kept;
    int64_t end = i;
    for (; end < n && key[end] == key[i]; ++end) add(&through, ws.key_w[end], ws.key_y[end]);
    edge.stopped = stops(cut, edge.kept, through, whole, need);
    if (edge.stopped && int(cut.stop) == kStopBefore) return edge;
    edge.key = key[i], edge.kept = through;
    if (edge.stopped) return edge;
    i = end;
  }
  return edge;
}

// The middle one of a few keys spread over the array: not the lowest of all unless they tie.
FD_FN float pivot_of(const float* key, int64_t n, float low, float high) {
  constexpr int kProbes = 9;
  float probe[kProbes];
  for (int i = 0; i < kProbes; ++i) {
    const float k = key[(2 * i + 1) * n / (2 * kProbes)];
    int at = i;
    for (; at > 0 && probe[at - 1] < k; --at) probe[at] = probe[at - 1];
    probe[at] = k;
  }
  return probe[kProbes / 2] > low ? probe[kProbes / 2] : high;
}

// `whole` are the sums over all survivors, which may be more tokens than these n; `before` those over tokens with larger keys.
static Edge search(const Cut& cut, const Sums& whole, const Workspace& ws, int64_t n, Sums before = {}) {
  const double need = needed(cut, whole);
  auto pad = [&] {
    for (int64_t i = n; i < n + kLanes; ++i) ws.key[i] = -INFINITY, ws.key_w[i] = ws.key_y[i] = 0;
  };
  pad();
  Range range = keep_side(ws, n, kLowest, true);
  float last_key = INFINITY;
  bool inside = false;  // is the stop known to be among the tokens that are left?
  while (n > kFew && range.high > range.low) {
    pad();
    const float pivot = pivot_of(ws.key, n, range.low, range.high);
    float lowest;
    const Sums through = plus(before, sums_above(ws, n, pivot, &lowest));
    const bool above = reaches(cut, through, whole, need);
    range = keep_side(ws, n, pivot, above);
    if (!above) before = through, last_key = lowest;
    inside |= above;
    n = range.n;
  }
  if (n <= kFew) {
    Edge edge = walk(cut, whole, need, ws, n, before, last_key);
    edge.stopped |= inside;  // rounding may have hidden the stop: then it is at the end of these tokens
    return edge;
  }
  pad();  // one large group of ties
  float lowest;
  const Sums through = plus(before, sums_above(ws, n, range.low, &lowest));
  const bool stopped = stops(cut, before, through, whole, need);
  if (stopped && int(cut.stop) == kStopBefore) return {true, last_key, before};
  return {stopped || inside, lowest, through};
}

}  // namespace FD_TARGET
}  // namespace fastdecode
