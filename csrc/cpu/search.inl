// What: the edge of a prefix among n tokens given by arrays of key, w = exp(d) and y = d / ln 2: the key of the last group of
//   tied tokens that a walk by descending key keeps, and the sums up to it.
// Contract: finite keys in any order, -inf and finite w behind the last one; the arrays given are read only, the work is done in
//   the workspace's key, key_w, key_y. Equal keys stay or go together.
// Idea: 1. a few probes tell about where the walk stops: take a pivot on either side; 2. add up the tokens at or above each;
//   the measure is monotone, so the sums tell for certain where the walk stops; 3. keep that part only, and go on; 4. at
//   24 tokens or fewer, sort and walk one group of ties after the other.
// Who does what: one thread. Numbers: sums in float over 16 vectors, in double across. Randomness: none.
// Cost: about two and a half looks at each token in all, a vector at a time. Limits: none; every round parts off a key.

#include "kernels.inl"

namespace fastdecode {
namespace FD_TARGET {

struct Tokens {
  const float *key, *w, *y;
};

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

// 2. The sums over the keys at or above each of two pivots; without kMoment, the moments are NaN.
template <bool kMoment>
static void sums_above(const Tokens& tokens, int64_t n, float high, float low, Sums* above) {
  D masses[2]{}, moments[2]{};
  const V pivot[2] = {all(high), all(low)};
  int64_t count[2] = {0, 0};
  for (int64_t first = 0; first < n; first += 16 * kLanes) {
    const int64_t end = first + 16 * kLanes < n ? first + 16 * kLanes : n;
    V mass[2] = {all(0.0f), all(0.0f)}, moment[2] = {all(0.0f), all(0.0f)};
    for (int64_t i = first; i < end; i += kLanes) {
      const V key = load(tokens.key + i), w = load(tokens.w + i);
      for (int p = 0; p < 2; ++p) {
        const M in = at_least(key, pivot[p]);
        const V part = zero_unless(in, w);
        count[p] += __builtin_popcount(bits_of(in));
        mass[p] += part;
        if (kMoment) moment[p] += part * load(tokens.y + i);
      }
    }
    for (int p = 0; p < 2; ++p) masses[p] += pairs_of(mass[p]);
    for (int p = 0; kMoment && p < 2; ++p) moments[p] += pairs_of(moment[p]);
  }
  for (int p = 0; p < 2; ++p)
    above[p] = {double(count[p]), sum_of_lanes(masses[p]), kMoment ? sum_of_lanes(moments[p]) * kLn2 : double(NAN)};
}

struct Range {
  int64_t n;
  float low, high;
};

// 3. Keeps the keys of [from, below) in the workspace, which the tokens may lie in already.
static Range keep_keys(const Tokens& tokens, const Workspace& ws, int64_t n, float from, float below) {
  int64_t kept = 0;
  V high = all(-INFINITY), minus_low = all(-INFINITY);
  for (int64_t i = 0; i < n; i += kLanes) {  // what is written lies at or before what was read
    const V key = load(tokens.key + i), w = load(tokens.w + i), y = load(tokens.y + i);
    const M in = both(at_least(key, all(from)), less(key, all(below)));
    const uint32_t bits = bits_of(in);
    if (!bits) continue;
    pack(key, bits, ws.key + kept), pack(w, bits, ws.key_w + kept), pack(y, bits, ws.key_y + kept);
    kept += __builtin_popcount(bits);
    high = max_of(high, choose(in, key, all(-INFINITY)));
    minus_low = max_of(minus_low, choose(in, -key, all(-INFINITY)));
  }
  for (int64_t i = kept; i < kept + kLanes; ++i) ws.key[i] = -INFINITY, ws.key_w[i] = ws.key_y[i] = 0;
  return {kept, -largest_lane(minus_low), largest_lane(high)};
}

// The lowest key at or above `bound`; INFINITY if there is none.
static float lowest_from(const Tokens& tokens, int64_t n, float bound) {
  V minus_lowest = all(-INFINITY);
  for (int64_t i = 0; i < n; i += kLanes) {
    const V key = load(tokens.key + i);
    minus_lowest = max_of(minus_lowest, choose(at_least(key, all(bound)), -key, all(-INFINITY)));
  }
  return -largest_lane(minus_lowest);
}

// 4. `so_far` are the sums over all tokens with larger keys. Edge::key is a NaN where the edge lies among those.
static Edge walk(const Cut& cut, const Sums& whole, double need, const Workspace& ws, int64_t n, Sums so_far) {
  float* key = ws.key;
  for (int64_t i = 1; i < n; ++i) {  // insertion sort, descending
    const float k = key[i], w = ws.key_w[i], y = ws.key_y[i];
    int64_t at = i;
    for (; at > 0 && key[at - 1] < k; --at)
      key[at] = key[at - 1], ws.key_w[at] = ws.key_w[at - 1], ws.key_y[at] = ws.key_y[at - 1];
    key[at] = k, ws.key_w[at] = w, ws.key_y[at] = y;
  }
  Edge edge{false, NAN, so_far};
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

static Pivots probe(const Cut& cut, const Sums& whole, double need, const Tokens& tokens, int64_t n, const Sums& before,
                    const Range& range, bool halve) {
  constexpr int kProbes = 32, kAround = 3;
  int64_t at[kProbes];
  for (int i = 0; i < kProbes; ++i) {  // insertion sort, descending
    const int64_t place = (2 * i + 1) * n / (2 * kProbes);
    int j = i;
    for (; j > 0 && tokens.key[at[j - 1]] < tokens.key[place]; --j) at[j] = at[j - 1];
    at[j] = place;
  }
  const float each = float(n) / kProbes;
  Sums part = before;
  // A few heavy tokens can fool the probes; so every other round takes quartiles, whatever they say.
  int stop = 0, around = halve ? kProbes / 4 : kAround;
  if (halve) stop = kProbes / 2;
  for (; !halve && stop < kProbes; ++stop) {
    const int64_t i = at[stop];
    part = plus(part, {each, double(each * tokens.w[i]), double(each * tokens.w[i] * tokens.y[i]) * kLn2});
    if (reaches(cut, part, whole, need)) break;
  }
  float high = stop < around ? INFINITY : tokens.key[at[stop - around]];
  float low = stop + around < kProbes ? tokens.key[at[stop + around]] : range.low;
  // Every round must part off something: a pivot at the lowest key does not.
  if (high <= range.low || high > range.high) high = INFINITY;
  if (high == INFINITY && low <= range.low) low = tokens.key[at[kProbes / 2]];
  if (high == INFINITY && low <= range.low) low = range.high;
  return {high, low};
}

// `whole` are the sums over all survivors, which may be more tokens than these n; `before` those over tokens with larger keys.
static Edge search(const Cut& cut, const Sums& whole, const Workspace& ws, Tokens tokens, int64_t n, Sums before = {}) {
  const double need = needed(cut, whole);
  const Tokens given = tokens;
  const int64_t given_n = n;
  auto sums = [&](const Tokens& of, int64_t count, float high, float low, Sums* above) {
    if (measures_moment(cut))
      sums_above<true>(of, count, high, low, above);
    else
      sums_above<false>(of, count, high, low, above);
  };
  Range range = {n, kLowest, INFINITY};
  float gone = INFINITY;  // keys from here on are counted in `before`
  auto keep = [&](float from, float below) {
    range = keep_keys(tokens, ws, n, from, below);
    tokens = {ws.key, ws.key_w, ws.key_y}, n = range.n;
  };
  auto lowest_gone = [&] { return gone == INFINITY ? INFINITY : lowest_from(given, given_n, gone); };
  bool inside = false;  // is the stop known to be among the tokens that are left?
  for (bool halve = false; n > kFew && range.high > range.low; halve = !halve) {
    const Pivots pivots = probe(cut, whole, need, tokens, n, before, range, halve);
    Sums above[2];
    sums(tokens, n, pivots.high, pivots.low, above);
    const Sums high = plus(before, above[0]), low = plus(before, above[1]);
    if (reaches(cut, high, whole, need)) {
      keep(pivots.high, INFINITY), inside = true;
    } else if (reaches(cut, low, whole, need)) {
      keep(pivots.low, pivots.high), inside = true;
      before = high, gone = fminf(gone, pivots.high);
    } else {
      keep(kLowest, pivots.low);
      before = low, gone = fminf(gone, pivots.low);
    }
  }
  if (n <= kFew) {
    if (tokens.key != ws.key || tokens.w != ws.key_w) keep(kLowest, INFINITY);
    Edge edge = walk(cut, whole, need, ws, n, before);
    edge.stopped |= inside;  // rounding may have hidden the stop: then it is at the end of these tokens
    if (edge.key != edge.key) edge.key = lowest_gone();
    return edge;
  }
  Sums tied[2];  // one large group of ties
  sums(tokens, n, range.low, range.low, tied);
  const Sums through = plus(before, tied[0]);
  const bool stopped = stops(cut, before, through, whole, need);
  if (stopped && int(cut.stop) == kStopBefore) return {true, lowest_gone(), before};
  return {stopped || inside, range.low, through};
}

}  // namespace FD_TARGET
}  // namespace fastdecode
