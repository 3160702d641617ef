// What: the edge of a prefix among n tokens given by arrays of key, w = exp(d) and y = d / ln 2: the key of the last group of
//   tied tokens that a walk by descending key keeps, and the sums up to it.
// Contract: finite keys in any order; behind the last one, kLanes keys of -inf with finite w. The arrays given are only read; the work is
//   done in the workspace's key, key_w, key_y. Equal keys stay or go together.
// Idea: 1. a few probes give pivots, about as many tokens between each two; 2. add up the tokens at or above each; the measure is
//   monotone, so the sums say for certain which two the walk stops between; 3. keep that part only, and go on; 4. at
//   24 tokens or fewer, sort and walk one group of ties after the other.
// Who does what: one thread. Numbers: sums in float over 16 vectors, in double across. Randomness: none.
// Cost: little more than two reads of each token, a vector at a time. Limits: none; every round removes a key.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../cut.h"
#include "../order.h"
#include "exp2.inl"
#include "row.inl"
#include "simd.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

// What tokens are ordered by: their logit, or how near they are to the centre of a typicality order.
struct Keys {
  bool by_logit = true;
  Scale scale;
  float centre = 0;  // the mean of y under p

  // Not from y, which ends at kLeastExponent: far tokens would be tied.
  inline __attribute__((always_inline)) V of(V x) const {
    if (by_logit) return x;
    const V distance = (x - scale.base) * scale.c - centre;
    return max_of(-max_of(distance, -distance), broadcast(kLowest));
  }
  FD_FN float centre_of(const Sums& whole) { return float(whole.moment / whole.mass / kLn2); }
};

// `whole`: the sums over the survivors.
FD_FN Keys keys_of(const Cut& cut, const Sums& whole, Scale s) {
  if (int(cut.order) == kByLogit) return {true, s, 0};
  return {false, s, Keys::centre_of(whole)};
}

// All logits whose keys are at least `edge`; an empty interval if that is hard to say.
static Interval logits_of(const Keys& keys, float edge) {
  if (keys.by_logit) return {edge, INFINITY};
  auto inside = [&](float x) { return keys.of(broadcast(x))[0] >= edge; };
  const float base = keys.scale.base, centre = base + keys.centre / keys.scale.c;
  if (!inside(centre)) return {INFINITY, -INFINITY};
  // Keys rise up to the centre and fall behind it: bisect over the floats, in their order as integers.
  auto last_from = [&](float from, float to) {  // the last float inside on the way
    if (inside(to)) return to;
    int64_t in = int64_t(key_of(from)), out = int64_t(key_of(to));
    while (in - out > 1 || out - in > 1) {
      const int64_t middle = in + (out - in) / 2;
      (inside(float_of_key(uint32_t(middle))) ? in : out) = middle;
    }
    return float_of_key(uint32_t(in));
  };
  const float top = last_from(centre, base);
  return {last_from(centre, kLowest), top == base ? INFINITY : top};  // the base is the largest of all
}

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

constexpr int kPivots = 8, kProbes = 4 * kPivots;

// 2. The sums over the keys at or above each of N pivots; without kMoment, the moments are NaN.
template <bool kMoment, int N>
static void sums_above(const Tokens& tokens, int64_t n, const float* pivots, Sums* above) {
  D masses[N]{}, moments[N]{};
  I counts[N]{};
  V pivot[N];
  for (int p = 0; p < N; ++p) pivot[p] = broadcast(pivots[p]);
  for (int64_t first = 0; first < n; first += 16 * kLanes) {
    const int64_t end = first + 16 * kLanes < n ? first + 16 * kLanes : n;
    V mass[N]{}, moment[N]{};
    for (int64_t i = first; i < end; i += kLanes) {
      const V key = load(tokens.key + i), w = load(tokens.w + i);
      const V wy = kMoment ? w * load(tokens.y + i) : w;
      for (int p = 0; p < N; ++p) {
        const M in = at_least(key, pivot[p]);
        counts[p] = count_where(in, counts[p]);
        mass[p] = add_where(in, mass[p], w);
        if (kMoment) moment[p] = add_where(in, moment[p], wy);
      }
    }
    for (int p = 0; p < N; ++p) masses[p] += pairs_of(mass[p]);
    for (int p = 0; kMoment && p < N; ++p) moments[p] += pairs_of(moment[p]);
  }
  for (int p = 0; p < N; ++p) {
    const double moment = kMoment ? reduce_sum(moments[p]) * kLn2 : double(NAN);
    above[p] = {double(reduce_sum(counts[p])), reduce_sum(masses[p]), moment};
  }
}

struct Range {
  int64_t n;
  float low, high;
};

// 3. Keeps the keys of [from, below) in the workspace, which the tokens may lie in already; without kMoment, no y.
template <bool kMoment>
static Range keep_keys(const Tokens& tokens, const Workspace& ws, int64_t n, float from, float below) {
  int64_t kept = 0;
  V high = broadcast(-INFINITY), minus_low = broadcast(-INFINITY);
  for (int64_t i = 0; i < n; i += kLanes) {  // what is written lies at or before what was read
    const V key = load(tokens.key + i), w = load(tokens.w + i), y = kMoment ? load(tokens.y + i) : w;
    const M in = both(at_least(key, broadcast(from)), less(key, broadcast(below)));
    const uint32_t bits = bits_of(in);  // no branch on none: on new keys it would be mispredicted
    compress_store(key, bits, ws.key + kept), compress_store(w, bits, ws.key_w + kept);
    if (kMoment) compress_store(y, bits, ws.key_y + kept);
    kept += __builtin_popcount(bits);
    high = max_of(high, select(in, key, broadcast(-INFINITY)));
    minus_low = max_of(minus_low, select(in, -key, broadcast(-INFINITY)));
  }
  for (int64_t i = kept; i < kept + kLanes; ++i) ws.key[i] = -INFINITY, ws.key_w[i] = ws.key_y[i] = 0;
  return {kept, -reduce_max(minus_low), reduce_max(high)};
}

// The lowest key at or above `bound`; INFINITY if there is none.
static float lowest_from(const Tokens& tokens, int64_t n, float bound) {
  V minus_lowest = broadcast(-INFINITY);
  for (int64_t i = 0; i < n; i += kLanes) {
    const V key = load(tokens.key + i);
    minus_lowest = max_of(minus_lowest, select(at_least(key, broadcast(bound)), -key, broadcast(-INFINITY)));
  }
  return -reduce_max(minus_lowest);
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

constexpr int kAround = 4;  // pivots, if the place of the edge is roughly known

// 1. A few keys that stand for all, descending: the place of each is the number of those before it. A sort by comparing and moving
// mispredicts about every other branch.
static void probe(const float* key, int64_t n, float* probes) {
  V taken[kProbes / kLanes], count[kProbes / kLanes];
  float unsorted[kProbes], places[kProbes];
  for (int i = 0; i < kProbes; ++i) unsorted[i] = key[(2 * i + 1) * n / (2 * kProbes)];
  for (int v = 0; v < kProbes / kLanes; ++v) taken[v] = load(unsorted + v * kLanes), count[v] = broadcast(0.0f);
  for (int i = 0; i < kProbes; ++i)
    for (int v = 0; v < kProbes / kLanes; ++v) {
      const V other = broadcast(unsorted[i]);
      const M later = less(broadcast(float(i - v * kLanes)), iota());
      const M before = either(less(taken[v], other), both(later, at_least(other, taken[v])));
      count[v] = add_where(before, count[v], broadcast(1.0f));
    }
  for (int v = 0; v < kProbes / kLanes; ++v) store(places + v * kLanes, count[v]);
  for (int i = 0; i < kProbes; ++i) probes[int(places[i])] = unsorted[i];
}

// Pivots between which there are about as many tokens each, descending.
static int spread_pivots(const float* probes, float* pivots) {
  for (int p = 0; p < kPivots; ++p) pivots[p] = probes[kProbes / kPivots * p + kProbes / kPivots / 2];
  return kPivots;
}

// Fewer of them, near the probe that has `share` of the tokens above it. Most probes are within 3 places of the quantile they stand for.
static int pivots_around(double share, const float* probes, float* pivots) {
  constexpr int kOff[kAround] = {-4, -1, 1, 4};
  const int middle = int(share * kProbes);
  for (int p = 0; p < kAround; ++p) {
    const int at = middle + kOff[p];
    pivots[p] = probes[at < 0 ? 0 : at < kProbes ? at : kProbes - 1];
  }
  return kAround;
}

// `whole`: the sums over all survivors, which may be more tokens than these n. `before`: the sums over tokens with larger keys.
// `share`: the part of these tokens that lies above the edge, as far as the caller can tell; a NaN if it cannot.
template <bool kMoment>
static Edge search_for(const Cut& cut, const Sums& whole, const Workspace& ws, Tokens tokens, int64_t n, Sums before,
                       double share) {
  const double need = needed(cut, whole);
  const Tokens given = tokens;
  const int64_t given_n = n;
  Range range = {n, kLowest, INFINITY};
  float gone = INFINITY;  // keys from here on are counted in `before`
  auto keep = [&](float from, float below) {
    range = keep_keys<kMoment>(tokens, ws, n, from, below);
    tokens = {ws.key, ws.key_w, ws.key_y}, n = range.n;
  };
  auto lowest_gone = [&] { return gone == INFINITY ? INFINITY : lowest_from(given, given_n, gone); };
  bool inside = false;  // is the stop known to be among the tokens that are left?
  while (n > kFew && range.high > range.low) {
    float probes[kProbes], pivots[kPivots];
    Sums above[kPivots];
    probe(tokens.key, n, probes);
    const bool around = share > 0 && share < 1;
    const int count = around ? pivots_around(share, probes, pivots) : spread_pivots(probes, pivots);
    if (pivots[0] <= range.low) pivots[0] = nextafterf(range.low, INFINITY);  // most of them are tied there
    if (around)
      sums_above<kMoment, kAround>(tokens, n, pivots, above);
    else
      sums_above<kMoment, kPivots>(tokens, n, pivots, above);
    share = NAN;
    int p = 0;
    while (p < count && !reaches(cut, plus(before, above[p]), whole, need)) ++p;
    keep(p < count ? pivots[p] : kLowest, p > 0 ? pivots[p - 1] : INFINITY);
    inside |= p < count;
    if (p > 0) before = plus(before, above[p - 1]), gone = fminf(gone, pivots[p - 1]);
  }
  if (n <= kFew) {
    if (tokens.key != ws.key || tokens.w != ws.key_w) keep(kLowest, INFINITY);
    Edge edge = walk(cut, whole, need, ws, n, before);
    edge.stopped |= inside;  // if rounding hid the stop, it is at the end of these tokens
    if (edge.key != edge.key) edge.key = lowest_gone();
    return edge;
  }
  Sums tied;  // one large group of ties
  sums_above<kMoment, 1>(tokens, n, &range.low, &tied);
  const Sums through = plus(before, tied);
  const bool stopped = stops(cut, before, through, whole, need);
  if (stopped && int(cut.stop) == kStopBefore) return {true, lowest_gone(), before};
  return {stopped || inside, range.low, through};
}

static Edge search(const Cut& cut, const Sums& whole, const Workspace& ws, Tokens tokens, int64_t n, Sums before = {},
                   double share = NAN) {
  if (measures_moment(cut)) return search_for<true>(cut, whole, ws, tokens, n, before, share);
  Edge edge = search_for<false>(cut, whole, ws, tokens, n, before, share);
  edge.kept.moment = NAN;
  return edge;
}

// The same, among the first n gathered tokens, whose logits, y and w are in the workspace at the scale of the keys.
static Edge search_gathered(const Cut& cut, const Sums& whole, const Workspace& ws, Keys keys, int64_t n,
                            Sums before = {}, double share = NAN) {
  for (int64_t i = n; i < n + kLanes; ++i) ws.x[i] = -INFINITY, ws.w[i] = 0;
  if (keys.by_logit) return search(cut, whole, ws, {ws.x, ws.w, ws.y}, n, before, share);
  for (int64_t i = 0; i < n; i += kLanes) store(ws.key + i, keys.of(load(ws.x + i)));
  for (int64_t i = n; i < n + kLanes; ++i) ws.key[i] = -INFINITY;
  return search(cut, whole, ws, {ws.key, ws.w, ws.y}, n, before, share);
}

}  // namespace FD_TARGET
}  // namespace fastdecode
