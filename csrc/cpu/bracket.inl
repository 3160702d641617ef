// What: one pass over a row that keeps many tokens: it adds up all survivors and those above a guessed edge, and gathers the few
//   that are near it.
// Contract: the guess may be wrong; whoever uses it looks at the exact sums and falls back if the edge is not there. The
//   answer never depends on the guess.
// Idea: a guess gives two intervals of logits, of which the inner one is kept for certain and the outer one not passed.
// Who does what: one thread. Numbers: as in kernels.inl. Randomness: none.
// Cost: as row_sums where most groups lie below the bracket; up to twice that where they do not. No branch depends on single tokens:
//   a row is new each time, and they would be guessed wrong. Limits: none.

#include "guess.inl"

namespace fastdecode {
namespace FD_TARGET {

// Floats in their order, as integers, and back.
static int64_t rank_of(float x) {
  const int32_t bits = int32_t(bits_of_float(x));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
static float float_at(int64_t rank) {
  const int32_t bits = int32_t(rank);
  return float_of_bits(uint32_t(bits ^ ((bits >> 31) & 0x7fffffff)));
}

// All logits whose keys are at least `edge`; nothing if it is hard to say.
static Interval logits_of(const Keys& keys, float edge) {
  if (keys.by_logit) return {edge, INFINITY};
  auto inside = [&](float x) { return Keys::of(keys, all(x))[0] >= edge; };
  const float centre = keys.base + keys.centre / keys.c;
  if (!inside(centre)) return {INFINITY, -INFINITY};
  // Keys rise up to the centre and fall behind it: bisection over the floats, in their order as integers.
  auto last_from = [&](float from, float to) {  // the farthest float inside, on the way to one
    if (inside(to)) return to;
    int64_t in = rank_of(from), out = rank_of(to);
    while (in - out > 1 || out - in > 1) {
      const int64_t middle = in + (out - in) / 2;
      (inside(float_at(middle)) ? in : out) = middle;
    }
    return float_at(in);
  };
  const float top = last_from(centre, keys.base);
  return {last_from(centre, kLowest), top == keys.base ? INFINITY : top};  // the base is the largest of all
}

struct Split {
  Sums whole, above;
  float highest = -INFINITY;  // the largest logit above
  int64_t between = 0;        // tokens gathered
};

// Where the tokens of a group lie; the less is known, the more there is to do.
enum Place {
  kBelow,        // the bracket, all of them
  kOnLowerSide,  // or in its lower part, or above
  kOnBothSides,
  kAnywhere,  // and some may have gone
};

// Adds up the survivors, and those above the bracket also by group, and gathers the logits of those inside it: those of group
// g from run_start[g] on. With kWhole, the moment of the survivors; with kAbove, of those above.
template <bool kWhole, bool kAbove, int kReach>
static Split split(const Row& row, const Workspace& ws, float base, float c, Interval interval, Bracket bracket) {
  const Weights<kReach> weights(base, c);
  const Interval wide{fmaxf(bracket.wide.bottom(), interval.lo), fminf(bracket.wide.hi, interval.hi)};
  const Interval inner{fmaxf(bracket.above.lo, wide.lo), fminf(bracket.above.hi, wide.hi)};
  const V low = all(wide.lo), high = all(wide.hi), inner_low = all(inner.lo), inner_high = all(inner.hi);
  const float bottom = interval.bottom(), plain = weights.plain(c);
  Split found;
  D masses{}, moments{}, inner_masses{}, inner_moments{};
  Count count, inner_count;
  V highest = all(-INFINITY);
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
        V mass = all(0.0f), moment = all(0.0f), mass_in = all(0.0f), moment_in = all(0.0f);
#pragma GCC unroll kUnroll
        for (int i = chunk; i < chunk + kChunk; i += kStep * kLanes) {
          V v[kStep], cut[kStep], w[kStep];
          M inner[kStep], alive[kStep], near[kStep];
          for (int k = 0; k < kStep; ++k) v[k] = held(x[i + k * kLanes]);
          weights.template of<kStep, x.kPadded>(v, cut, w);
          for (int k = 0; k < kStep; ++k) {
            if (kPlace == kAnywhere) {
              alive[k] = Interval::has(v[k], bottom, interval.hi);
              w[k] = zero_unless(alive[k], w[k]);
            }
            const V d = kPlainly ? cut[k] : weights.drop(cut[k]);
            mass = held(mass + w[k]);  // gcc would rather have these in memory
            if (kWhole) moment += w[k] * d;
            if (kPlace == kBelow) continue;
            M in = at_least(v[k], low), in_inner = at_least(v[k], inner_low);
            if (kPlace != kOnLowerSide) {
              in = both(in, at_least(high, v[k])), in_inner = both(in_inner, at_least(inner_high, v[k]));
              highest = max_of(highest, choose(in_inner, v[k], all(-INFINITY)));
            }
            mass_in = held(add_where(in_inner, mass_in, w[k]));
            if (kAbove) moment_in += zero_unless(in_inner, w[k]) * d;
            inner[k] = in_inner, near[k] = first_only(in, in_inner);
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
      if (largest >= inner.lo) highest = max_of(highest, all(largest));
    }
    ws.group_mass[g] = sum_of_lanes(inner_mass);
    inner_masses += inner_mass;
  });
  found.between = to - ws.x;
  ws.run_start[row.groups()] = int32_t(found.between);
  const double one = weights.one(), unit = double(c) * kLn2 / one;
  found.whole = {double(count.total()), sum_of_lanes(masses) / one,
                 kWhole ? sum_of_lanes(moments) * unit : double(NAN)};
  found.above = {double(inner_count.total()), sum_of_lanes(inner_masses) / one,
                 kAbove ? sum_of_lanes(inner_moments) * unit : double(NAN)};
  found.highest = largest_lane(highest);
  return found;
}

static Split split_for(const Cut& cut, const Row& row, const Workspace& ws, float base, float least, float c,
                       Interval interval, Bracket bracket) {
  auto split_by = [&](auto whole, auto above) {
    return by_reach(reach_of(base, least, c), [&](auto reach) {
      return split<decltype(whole)::value, decltype(above)::value, decltype(reach)::value>(row, ws, base, c, interval,
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
