// What: the sums over the survivors of a row: exponentials, their moment, what a standard deviation and a sum of p^2 need.
// Contract: a row is read in groups of 256 tokens; kernels see floats, wherever the row lies and whatever its type is (row.inl). The last
//   group is padded. Groups' maxima are in the workspace (open.inl).
// Idea: several vectors in flight per loop, sums in float per lane over one group, in double across groups; a group whose maximum
//   lies below the interval is not looked at.
// Who does what: one thread, one row.
// Numbers: y = (x - base) * c with c = 1 / (T ln 2), see exp2.inl; never x * c - base * c, which loses the bits that cancel.
// Randomness: none.
// Cost: row_sums is bound by 12 operations a vector, all but one of them the exponential. Limits: none.
#pragma once

#include <math.h>
#include <stdint.h>

#include <type_traits>

#include "../cut.h"
#include "../dtype.h"
#include "../order.h"
#include "exp2.inl"
#include "row.inl"
#include "simd.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

// Sums over the survivors of a row; leaves each group's mass in `group_mass` for the draw. `n` counts them if the interval is not open;
// without kMoment, the moment is a NaN.
template <bool kOpen, bool kMoment, int kReach>
static Sums row_sums_in(const Row& row, const Workspace& ws, Scale s, Interval interval) {
  const float max = s.base, c = s.c;
  const Weights<kReach> weights(s);
  const float bottom = interval.bottom();
  const float far = least_drop(c, kFarExponent), plain = weights.plain(c);
  const double nothing = kGroupSize * exp2(double(kLeastExponent));
  D masses{}, moments{};
  Count n;
  row.each(-INFINITY, [&](int64_t g, auto x) FD_INLINE {
    ws.group_mass[g] = 0;
    if (!(ws.group_max[g] >= bottom)) return;
    if (kReach != kNear && kOpen && ws.group_max[g] - max <= far) {  // at low temperatures, most groups
      ws.group_mass[g] = nothing;
      masses[0] += nothing;
      return;
    }
    D group_mass{};
    auto add_up = [&](auto plainly) FD_INLINE {
      constexpr bool kPlainly = decltype(plainly)::value;
      for (int chunk = 0; chunk < kGroupSize; chunk += kChunk) {
        V mass[2]{}, moment[2]{};
#pragma GCC unroll kUnroll
        for (int i = chunk; i < chunk + kChunk; i += kStep * kLanes) {
          V v[kStep], cut[kStep], w[kStep];
          for (int k = 0; k < kStep; k += 2) x.pair(i + k * kLanes, v + k);
          weights.template of<kStep, x.kPadded>(v, cut, w);
          if (!kOpen) {
            M in[kStep];
            for (int k = 0; k < kStep; ++k) in[k] = Interval::has(v[k], bottom, interval.hi);
            for (int k = 0; k < kStep; ++k) w[k] = select_or_zero(in[k], w[k]);
            n.add<kStep>(in);
          }
          for (int k = 0; k < kStep; ++k) mass[k % 2] += w[k];
          for (int k = 0; kMoment && k < kStep; ++k) moment[k % 2] += w[k] * (kPlainly ? cut[k] : weights.drop(cut[k]));
        }
        const D part = pairs_of(x.sum_of_pair(mass));
        group_mass += part;
        if (kMoment) moments += pairs_of(x.sum_of_pair(moment)) - (kPlainly ? part * max : D{});
      }
    };
    if (kMoment && ws.group_max[g] <= plain)
      add_up(std::true_type());
    else
      add_up(std::false_type());
    ws.group_mass[g] = reduce_sum(group_mass);
    masses += group_mass;
  });
  const double one = weights.one(), unit = double(c) * kLn2 / one;
  return {double(n.total()), reduce_sum(masses) / one, kMoment ? reduce_sum(moments) * unit : double(NAN)};
}

static Sums row_sums(const Row& row, const Workspace& ws, Scale s, float least, Interval interval, bool moment) {
  return by_reach(reach_of(s, least), [&](auto reach) {
    constexpr int kReach = decltype(reach)::value;
    if (!interval.open())
      return moment ? row_sums_in<false, true, kReach>(row, ws, s, interval)
                    : row_sums_in<false, false, kReach>(row, ws, s, interval);
    return moment ? row_sums_in<true, true, kReach>(row, ws, s, interval)
                  : row_sums_in<true, false, kReach>(row, ws, s, interval);
  });
}

// Sums over n gathered tokens; leaves y and w = 2^y in the workspace.
static Sums gathered_sums(const Workspace& ws, int64_t n, Scale s) {
  for (int64_t i = n; i < n + kStep * kLanes; ++i) ws.x[i] = -INFINITY;
  const float c = s.c;
  const Weights<kFar> weights(s);
  D masses{}, moments{};
  for (int64_t i = 0; i < n; i += kStep * kLanes) {
    V x[kStep], d[kStep], w[kStep], mass = broadcast(0.0f), moment = broadcast(0.0f);
    for (int k = 0; k < kStep; ++k) x[k] = load(ws.x + i + k * kLanes);
    weights.of<kStep, false>(x, d, w);  // kFar: x - base
    for (int k = 0; k < kStep; ++k) {
      store(ws.y + i + k * kLanes, d[k] * c), store(ws.w + i + k * kLanes, w[k]);
      mass += w[k], moment += w[k] * d[k];
    }
    masses += pairs_of(mass), moments += pairs_of(moment);
  }
  return {double(n), reduce_sum(masses), reduce_sum(moments) * double(c) * kLn2};
}

// What a standard deviation and a sum of p^2 need.
struct Spread {
  double n = 0, sum = 0, squares = 0;  // of x - max
  double mass2 = 0;                    // sum exp(2 d), if it was asked for
};

// Over n logits, n a multiple of kLanes, of which those in the interval count.
template <bool kMass2>
FD_FN void add_spread(const float* x, int64_t n, Scale s, Interval interval, Spread* spread) {
  const float bottom = interval.bottom(), max = s.base;
  const Weights<kFar> weights2({2 * s.c, max});
  int64_t count = 0;
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t end = first + kChunk < n ? first + kChunk : n;
    V sums[2]{}, squares[2]{}, masses2 = broadcast(0.0f);  // two of them: one alone waits for itself
    auto look = [&](int64_t i, int k) FD_INLINE {
      const V d = load(x + i) - max;
      const M in = Interval::has(load(x + i), bottom, interval.hi);
      const V counted = select_or_zero(in, d);
      count += __builtin_popcount(bits_of(in));
      sums[k] += counted, squares[k] += counted * counted;
      if (kMass2) masses2 += select_or_zero(in, weights2.of(load(x + i)));
    };
    int64_t i = first;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) look(i, 0), look(i + kLanes, 1);
    if (i < end) look(i, 0);
    double sum = reduce_sum(pairs_of(sums[0] + sums[1])), square = reduce_sum(pairs_of(squares[0] + squares[1]));
    if (!(square < INFINITY)) {  // logits near the lowest float, as masks use them: only double can hold their squares
      sum = square = 0;
      for (int64_t k = first; k < end; ++k) {
        const double e = x[k] >= bottom && x[k] <= interval.hi ? double(x[k]) - double(max) : 0.0;
        sum += e, square += e * e;
      }
    }
    spread->sum += sum, spread->squares += square;
    if (kMass2) spread->mass2 += reduce_sum(pairs_of(masses2));
  }
  spread->n += double(count);
}

static Spread row_spread(const Row& row, Scale s, Interval interval, bool mass2) {
  alignas(64) float buffer[kGroupSize];
  Spread spread;
  for (int64_t g = 0; g < row.groups(); ++g) {
    const float* x = row.group(g, -INFINITY, buffer);
    if (mass2)
      add_spread<true>(x, kGroupSize, s, interval, &spread);
    else
      add_spread<false>(x, kGroupSize, s, interval, &spread);
  }
  return spread;
}

static Spread gathered_spread(const Workspace& ws, int64_t n, Scale s, Interval interval) {
  for (int64_t i = n; i < n + kLanes; ++i) ws.x[i] = -INFINITY;
  Spread spread;
  add_spread<true>(ws.x, (n + kLanes - 1) / kLanes * kLanes, s, interval, &spread);
  return spread;
}

// A bound that the maxima of at least `rank` groups reach, and of few more: at least `rank` tokens lie at or above it. kLowest if
// there are fewer groups. kLanes of -inf lie behind the maxima.
static float bound_by_groups(const float* group_max, int64_t groups, int64_t rank) {
  V highest = broadcast(-INFINITY), minus_lowest = highest;
  for (int64_t g = 0; g < groups; g += kLanes) {
    const V x = load(group_max + g);
    highest = max_of(highest, x);
    minus_lowest = max_of(minus_lowest, select(less(iota(), broadcast(float(groups - g))), -x, broadcast(-INFINITY)));
  }
  float high = fmaxf(reduce_max(highest), kLowest), low = -reduce_max(minus_lowest);
  if (rank >= groups || !(low > kLowest)) return kLowest;
  // `low` is always reached by at least `rank` groups; bisect until it is not reached by many more.
  for (int round = 0; round < 12; ++round) {
    const float middle = low + (high - low) / 2;
    int64_t reached = 0;
    for (int64_t g = 0; g < groups; g += kLanes)
      reached += __builtin_popcount(bits_of(at_least(load(group_max + g), broadcast(middle))));
    if (reached >= rank)
      low = middle;
    else
      high = middle;
    if (reached >= rank && reached <= rank + rank / 4) break;
  }
  return low;
}

}  // namespace FD_TARGET
}  // namespace fastdecode
