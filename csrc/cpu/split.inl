// What: one pass over a row that keeps many tokens. It adds up all survivors, and those above a guessed edge, and gathers the few
//   that are near it.
// Contract: the guess may be wrong. The caller looks at the exact sums and falls back if the edge is not there, so the answer never
//   depends on the guess.
// Idea: the guess is two intervals of logits: tokens in the inner one are certainly kept, the edge lies within the outer one.
// Who does what: one thread. Numbers: as in measure.inl. Randomness: none.
// Cost: as row_sums where most groups lie below the bracket; up to twice that where they do not. No branch depends on a single token:
//   a row is new each time, so such branches would be mispredicted. Limits: none.
#pragma once

#include <math.h>
#include <stdint.h>

#include <type_traits>

#include "../cut.h"
#include "../order.h"
#include "exp2.inl"
#include "row.inl"
#include "simd.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

// The edge is guessed to lie among the logits of `wide` outside `above`; those of `above` are kept.
struct Bracket {
  Interval above, wide;
};

struct Split {
  Sums whole, above;
  float highest = -INFINITY;  // the largest logit above
  int64_t between = 0;        // tokens gathered
};

// Where the tokens of a group lie: from the cheapest case, where most is known, to the dearest.
enum Place {
  kBelow,        // all below the bracket
  kOnLowerSide,  // none above the inner interval
  kOnBothSides,  // anywhere, and all are survivors
  kAnywhere,     // anywhere, and some may not survive
};

// Adds up the survivors, and those above the bracket also by group, and gathers the logits of those inside it: those of group
// g from run_start[g] on. With kWhole, the moment of the survivors; with kAbove, of those above.
template <bool kWhole, bool kAbove, int kReach>
static Split split(const Row& row, const Workspace& ws, Scale s, Interval interval, Bracket bracket) {
  const float base = s.base, c = s.c;
  const Weights<kReach> weights(s);
  const Interval wide{fmaxf(bracket.wide.bottom(), interval.lo), fminf(bracket.wide.hi, interval.hi)};
  const Interval inner{fmaxf(bracket.above.lo, wide.lo), fminf(bracket.above.hi, wide.hi)};
  const V low = broadcast(wide.lo), high = broadcast(wide.hi), inner_low = broadcast(inner.lo),
          inner_high = broadcast(inner.hi);
  const float bottom = interval.bottom(), plain = weights.plain(c);
  Split found;
  D masses{}, moments{}, inner_masses{}, inner_moments{};
  Count count, inner_count;
  V highest = broadcast(-INFINITY);
  float* to = ws.x;
  row.each(-INFINITY, [&](int64_t g, auto x) FD_INLINE {
    ws.group_mass[g] = 0;
    ws.run_start[g] = int32_t(to - ws.x);
    if (!(ws.group_max[g] >= bottom)) return;
    const float largest = ws.group_max[g];
    D inner_mass{};
    alignas(8) uint8_t near_bits[kGroupSize / 8];
    auto add_up = [&](auto place, auto plainly) FD_INLINE {
      constexpr int kPlace = decltype(place)::value;
      constexpr bool kPlainly = decltype(plainly)::value;
      for (int chunk = 0; chunk < kGroupSize; chunk += kChunk) {
        V mass = broadcast(0.0f), moment = broadcast(0.0f), mass_in = broadcast(0.0f), moment_in = broadcast(0.0f);
#pragma GCC unroll kUnroll
        for (int i = chunk; i < chunk + kChunk; i += kStep * kLanes) {
          V v[kStep], cut[kStep], w[kStep];
          M inner[kStep], alive[kStep], near[kStep];
          for (int k = 0; k < kStep; ++k) v[k] = in_register(x[i + k * kLanes]);
          weights.template of<kStep, x.kPadded>(v, cut, w);
          for (int k = 0; k < kStep; ++k) {
            if (kPlace == kAnywhere) {
              alive[k] = Interval::has(v[k], bottom, interval.hi);
              w[k] = select_or_zero(alive[k], w[k]);
            }
            const V d = kPlainly ? cut[k] : weights.drop(cut[k]);
            mass = in_register(mass + w[k]);  // gcc keeps the sums in memory otherwise
            if (kWhole) moment += w[k] * d;
            if (kPlace == kBelow) continue;
            M in = at_least(v[k], low), in_inner = at_least(v[k], inner_low);
            if (kPlace != kOnLowerSide) {
              in = both(in, at_least(high, v[k])), in_inner = both(in_inner, at_least(inner_high, v[k]));
              highest = max_of(highest, select(in_inner, v[k], broadcast(-INFINITY)));
            }
            mass_in = in_register(add_where(in_inner, mass_in, w[k]));
            if (kAbove) moment_in += select_or_zero(in_inner, w[k]) * d;
            inner[k] = in_inner, near[k] = and_not(in, in_inner);
          }
          if (kPlace == kAnywhere) count.add<kStep>(alive);
          if (kPlace == kBelow) continue;
          inner_count.add<kStep>(inner);
          store_bits<kStep>(near, near_bits + unsigned(i) / 8);
        }
        const D part = pairs_of(mass), part_in = pairs_of(mass_in);
        masses += part, inner_mass += part_in;
        if (kWhole) moments += pairs_of(moment) - (kPlainly ? part * base : D{});
        if (kAbove) inner_moments += pairs_of(moment_in) - (kPlainly ? part_in * base : D{});
      }
      if (kPlace != kBelow) to += x.append(near_bits, to);
    };
    auto add_up_at = [&](auto place) FD_INLINE {
      if ((kWhole || kAbove) && largest <= plain)
        add_up(place, std::true_type());
      else
        add_up(place, std::false_type());
    };
    if (!interval.open()) {
      add_up(std::integral_constant<int, kAnywhere>(), std::false_type());
    } else if (largest < wide.lo) {
      add_up_at(std::integral_constant<int, kBelow>());
    } else if (largest > inner.hi) {
      add_up(std::integral_constant<int, kOnBothSides>(), std::false_type());
    } else {
      add_up_at(std::integral_constant<int, kOnLowerSide>());
      if (largest >= inner.lo) highest = max_of(highest, broadcast(largest));
    }
    ws.group_mass[g] = reduce_sum(inner_mass);
    inner_masses += inner_mass;
  });
  found.between = to - ws.x;
  ws.run_start[row.groups()] = int32_t(found.between);
  const double one = weights.one(), unit = double(c) * kLn2 / one;
  found.whole = {double(count.total()), reduce_sum(masses) / one, kWhole ? reduce_sum(moments) * unit : double(NAN)};
  found.above = {double(inner_count.total()), reduce_sum(inner_masses) / one,
                 kAbove ? reduce_sum(inner_moments) * unit : double(NAN)};
  found.highest = reduce_max(highest);
  return found;
}

// `least`: no logit of the row is smaller.
static Split split_for(const Cut& cut, const Row& row, const Workspace& ws, Scale s, float least, Interval interval,
                       Bracket bracket) {
  auto split_by = [&](auto whole, auto above) {
    return by_reach(reach_of(s, least), [&](auto reach) {
      return split<decltype(whole)::value, decltype(above)::value, decltype(reach)::value>(row, ws, s, interval,
                                                                                           bracket);
    });
  };
  const std::true_type yes;
  const std::false_type no;
  if (measures_moment(cut)) return split_by(yes, yes);
  return wants_moment(cut) ? split_by(yes, no) : split_by(no, no);
}

}  // namespace FD_TARGET
}  // namespace fastdecode
