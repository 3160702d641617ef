// What: the edge of a prefix among n tokens given by arrays of key, w = exp(d) and y = d / ln 2: the key of the last group of
//   tied tokens that a walk by descending key keeps, and the sums up to it.
// Contract: finite keys in any order; the arrays are reordered. Equal keys stay or go together.
// Idea: 1. a few probes tell about where the walk stops: take a pivot on either side; 2. add up the tokens at or above each;
//   the measure is monotone, so the sums tell for certain where the walk stops; 3. keep that part only, and go on; 4. at
//   24 tokens or fewer, sort and walk one group of ties after the other.
// Who does what: one thread. Numbers: sums in float over 16 vectors, in double across. Randomness: none.
// Cost: about two and a half looks at each token in all, a vector at a time. Limits: none; every round parts off a key.

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

// 2. The sums over the keys at or above each of two pivots, high >= low, and the lowest of those keys.
struct Upper {
  Sums sums;
  float lowest;
};

static void sums_above(const Workspace& ws, int64_t n, float high, float low, Upper* above_high, Upper* above_low) {
  D masses[2]{}, moments[2]{};
  V minus_lowest[2] = {all(-INFINITY), all(-INFINITY)};
  const V pivot[2] = {all(high), all(low)}, nothing = all(-INFINITY);
  int64_t count[2] = {0, 0};
  for (int64_t first = 0; first < n; first += 16 * kLanes) {
    const int64_t end = first + 16 * kLanes < n ? first + 16 * kLanes : n;
    V mass[2] = {all(0.0f), all(0.0f)}, moment[2] = {all(0.0f), all(0.0f)};
    for (int64_t i = first; i < end; i += kLanes) {
      const V key = load(ws.key + i), w = load(ws.key_w + i), y = load(ws.key_y + i);
      for (int p = 0; p < 2; ++p) {
        const M in = at_least(key, pivot[p]);
        const V part = zero_unless(in, w);
        count[p] += __builtin_popcount(bits_of(in));
        mass[p] += part;
        moment[p] += part * y;
        minus_lowest[p] = max_of(minus_lowest[p], choose(in, -key, nothing));
      }
    }
    for (int p = 0; p < 2; ++p) masses[p] += pairs_of(mass[p]), moments[p] += pairs_of(moment[p]);
  }
  Upper* const out[2] = {above_high, above_low};
  for (int p = 0; p < 2; ++p)
    *out[p] = {{double(count[p]), sum_of_lanes(masses[p]), sum_of_lanes(moments[p]) * kLn2},
               -largest_lane(minus_lowest[p])};
}

struct Range {
  int64_t n;
  float low, high;
};

// 3. Keeps the keys of [from, below).
static Range keep_keys(const Workspace& ws, int64_t n, float from, float below) {
  int64_t kept = 0;
  V high = all(-INFINITY), minus_low = all(-INFINITY);
  for (int64_t i = 0; i < n; i += kLanes) {  // what is written lies at or before what was read
    const V key = load(ws.key + i), w = load(ws.key_w + i), y = load(ws.key_y + i);
    const M in = both(at_least(key, all(from)), less(key, all(below)));
    const uint32_t bits = bits_of(in);
    if (!bits) continue;
    pack(key, bits, ws.key + kept), pack(w, bits, ws.key_w + kept), pack(y, bits, ws.key_y + kept);
    kept += __builtin_popcount(bits);
    high = max_of(high, choose(in, key, all(-INFINITY)));
    minus_low = max_of(minus_low, choose(in, -key, all(-INFINITY)));
  }
  return {kept, -largest_lane(minus_low), largest_lane(high)};
}

// 4. `so_far` are the sums over all tokens with larger keys, `last_key` the lowest of those keys.
static Edge walk(const Cut& cut, const Sums& whole, double need, const Workspace& ws, int64_t n, Sums so_far,
                 float last_key) {
  float* key = ws.key;
  for (int64_t i = 1; i < n; ++i) {  // insertion sort, descending
    const float k = key[i], w = ws.key_w[i], y = ws.key_y[i];
    int64_t at = i;
    for (; at > 0 && key[at - 1] < k; --at)
      key[at] = key[at - 1], ws.key_w[at] = ws.key_w[at - 1], ws.key_y[at] = ws.key_y[at - 1];
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

// 1. Two keys that the stop is likely to lie between, the higher one perhaps INFINITY.
struct Pivots {
  float high, low;
};

static Pivots probe(const Cut& cut, const Sums& whole, double need, const Workspace& ws, int64_t n, const Sums& before,
                    const Range& range, bool halve) {
  constexpr int kProbes = 32, kAround = 3;
  int at[kProbes];
  for (int i = 0; i < kProbes; ++i) {  // insertion sort, descending
    const int place = int((2 * i + 1) * n / (2 * kProbes));
    int j = i;
    for (; j > 0 && ws.key[at[j - 1]] < ws.key[place]; --j) at[j] = at[j - 1];
    at[j] = place;
  }
  const float each = float(n) / kProbes;
  Sums part = before;
  // A few heavy tokens can fool the probes; so every other round takes quartiles, whatever they say.
  int stop = 0, around = halve ? kProbes / 4 : kAround;
  if (halve) stop = kProbes / 2;
  for (; !halve && stop < kProbes; ++stop) {
    const int i = at[stop];
    part = plus(part, {each, double(each * ws.key_w[i]), double(each * ws.key_w[i] * ws.key_y[i]) * kLn2});
    if (reaches(cut, part, whole, need)) break;
  }
  float high = stop < around ? INFINITY : ws.key[at[stop - around]];
  float low = stop + around < kProbes ? ws.key[at[stop + around]] : range.low;
  // Every round must part off something: a pivot at the lowest key does not.
  if (high <= range.low || high > range.high) high = INFINITY;
  if (high == INFINITY && low <= range.low) low = ws.key[at[kProbes / 2]];
  if (high == INFINITY && low <= range.low) low = range.high;
  return {high, low};
}

// `whole` are the sums over all survivors, which may be more tokens than these n; `before` those over tokens with larger keys.
static Edge search(const Cut& cut, const Sums& whole, const Workspace& ws, int64_t n, Sums before = {}) {
  const double need = needed(cut, whole);
  auto pad = [&] {
    for (int64_t i = n; i < n + kLanes; ++i) ws.key[i] = -INFINITY, ws.key_w[i] = ws.key_y[i] = 0;
  };
  pad();
  Range range = {n, kLowest, INFINITY};
  float last_key = INFINITY;
  bool inside = false;  // is the stop known to be among the tokens that are left?
  for (bool halve = false; n > kFew && range.high > range.low; halve = !halve) {
    const Pivots pivots = probe(cut, whole, need, ws, n, before, range, halve);
    Upper high, low;
    sums_above(ws, n, pivots.high, pivots.low, &high, &low);
    high.sums = plus(before, high.sums), low.sums = plus(before, low.sums);
    if (reaches(cut, high.sums, whole, need)) {
      range = keep_keys(ws, n, pivots.high, INFINITY), inside = true;
    } else if (reaches(cut, low.sums, whole, need)) {
      range = keep_keys(ws, n, pivots.low, pivots.high), inside = true;
      before = high.sums, last_key = fminf(last_key, high.lowest);
    } else {
      range = keep_keys(ws, n, kLowest, pivots.low);
      before = low.sums, last_key = fminf(last_key, low.lowest);
    }
    n = range.n;
    pad();
  }
  if (n <= kFew) {
    Edge edge = walk(cut, whole, need, ws, n, before, last_key);
    edge.stopped |= inside;  // rounding may have hidden the stop: then it is at the end of these tokens
    return edge;
  }
  Upper tied, same;  // one large group of ties
  sums_above(ws, n, range.low, range.low, &tied, &same);
  const Sums through = plus(before, tied.sums);
  const bool stopped = stops(cut, before, through, whole, need);
  if (stopped && int(cut.stop) == kStopBefore) return {true, last_key, before};
  return {stopped || inside, range.low, through};
}

}  // namespace FD_TARGET
}  // namespace fastdecode
