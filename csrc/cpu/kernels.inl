// What: the loops over many tokens: sums of exponentials, gathering.
// Contract: a row is read in groups of 256 tokens through Row::group, which answers with 256 floats wherever the row lies and
//   whatever its type is; the last group is padded. Kernels see floats only.
// Idea: several vectors in flight per loop, sums in float per lane over one group, in double across groups; a group
//   whose maximum lies below the interval is not looked at.
// Who does what: one thread, one row.
// Numbers: y = (x - max) * c with c = 1 / (T ln 2), see exp2.h; never x * c - max * c, which loses the bits that cancel.
// Randomness: none.
// Cost: row_max reads at the speed of the cache; row_sums is bound by 12 operations a vector, all but one of them the exponential.
// Limits: none; rows of any length, alignment and type.

#include "row.inl"

namespace fastdecode {
namespace FD_TARGET {

// 1. Sums over the survivors of a row at scale c; leaves each group's mass in `group_mass` for the draw. `n` counts them if the
//    interval is not open; without kMoment, the moment is a NaN.
template <bool kOpen, bool kMoment, int kReach>
static Sums row_sums_in(const Row& row, const Workspace& ws, float max, float c, Interval interval) {
  const Weights<kReach> weights(max, c);
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
            for (int k = 0; k < kStep; ++k) w[k] = zero_unless(in[k], w[k]);
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
    ws.group_mass[g] = sum_of_lanes(group_mass);
    masses += group_mass;
  });
  const double one = weights.one(), unit = double(c) * kLn2 / one;
  return {double(n.total()), sum_of_lanes(masses) / one, kMoment ? sum_of_lanes(moments) * unit : double(NAN)};
}

static Sums row_sums(const Row& row, const Workspace& ws, float max, float least, float c, Interval interval,
                     bool moment) {
  return by_reach(reach_of(max, least, c), [&](auto reach) {
    constexpr int kReach = decltype(reach)::value;
    if (!interval.open())
      return moment ? row_sums_in<false, true, kReach>(row, ws, max, c, interval)
                    : row_sums_in<false, false, kReach>(row, ws, max, c, interval);
    return moment ? row_sums_in<true, true, kReach>(row, ws, max, c, interval)
                  : row_sums_in<true, false, kReach>(row, ws, max, c, interval);
  });
}

// Sums over n gathered tokens; leaves y and w = 2^y in the workspace.
static Sums gathered_sums(const Workspace& ws, int64_t n, float max, float c) {
  for (int64_t i = n; i < n + kStep * kLanes; ++i) ws.x[i] = -INFINITY;
  const Weights<kFar> weights(max, c);
  D masses{}, moments{};
  for (int64_t i = 0; i < n; i += kStep * kLanes) {
    V x[kStep], d[kStep], w[kStep], mass = all(0.0f), moment = all(0.0f);
    for (int k = 0; k < kStep; ++k) x[k] = load(ws.x + i + k * kLanes);
    weights.of<kStep, false>(x, d, w);  // kFar: x - base
    for (int k = 0; k < kStep; ++k) {
      store(ws.y + i + k * kLanes, d[k] * c), store(ws.w + i + k * kLanes, w[k]);
      mass += w[k], moment += w[k] * d[k];
    }
    masses += pairs_of(mass), moments += pairs_of(moment);
  }
  return {double(n), sum_of_lanes(masses), sum_of_lanes(moments) * double(c) * kLn2};
}

// What a standard deviation and a sum of p^2 need.
struct Spread {
  double n = 0, sum = 0, squares = 0;  // of x - max
  double mass2 = 0;                    // sum exp(2 d), if it was asked for
};

// Survivors that are masked with a number do not count (dtype.h), unless all are.
FD_FN Interval without_masked(Interval interval, float top, int dtype) {
  const float masked = masked_at(dtype);
  return top > masked ? Interval{fmaxf(interval.lo, nextafterf(masked, 0)), interval.hi} : interval;
}

// Over n logits, n a multiple of kLanes, of which those in the interval count.
template <bool kMass2>
FD_FN void add_spread(const float* x, int64_t n, float max, float c, Interval interval, Spread* spread) {
  const float bottom = interval.bottom();
  const Weights<kFar> weights2(max, 2 * c);
  int64_t count = 0;
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t end = first + kChunk < n ? first + kChunk : n;
    V sums[2]{}, squares[2]{}, masses2 = all(0.0f);  // two of them: one alone waits for itself
    auto look = [&](int64_t i, int k) FD_INLINE {
      const V d = load(x + i) - max;
      const M in = Interval::has(load(x + i), bottom, interval.hi);
      const V counted = zero_unless(in, d);
      count += __builtin_popcount(bits_of(in));
      sums[k] += counted, squares[k] += counted * counted;
      if (kMass2) masses2 += zero_unless(in, weights2.of(load(x + i)));
    };
    int64_t i = first;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) look(i, 0), look(i + kLanes, 1);
    if (i < end) look(i, 0);
    double sum = sum_of_lanes(pairs_of(sums[0] + sums[1])), square = sum_of_lanes(pairs_of(squares[0] + squares[1]));
    if (!(square < INFINITY)) {  // logits near the lowest float, as masks use them: only double holds their squares
      sum = square = 0;
      for (int64_t k = first; k < end; ++k) {
        const double e = x[k] >= bottom && x[k] <= interval.hi ? double(x[k]) - double(max) : 0.0;
        sum += e, square += e * e;
      }
    }
    spread->sum += sum, spread->squares += square;
    if (kMass2) spread->mass2 += sum_of_lanes(pairs_of(masses2));
  }
  spread->n += double(count);
}

static Spread row_spread(const Row& row, float max, float c, Interval interval, bool mass2) {
  alignas(64) float buffer[kGroupSize];
  Spread spread;
  for (int64_t g = 0; g < row.groups(); ++g) {
    const float* x = row.group(g, -INFINITY, buffer);
    if (mass2)
      add_spread<true>(x, kGroupSize, max, c, interval, &spread);
    else
      add_spread<false>(x, kGroupSize, max, c, interval, &spread);
  }
  return spread;
}

static Spread gathered_spread(const Workspace& ws, int64_t n, float max, float c, Interval interval) {
  for (int64_t i = n; i < n + kLanes; ++i) ws.x[i] = -INFINITY;
  Spread spread;
  add_spread<true>(ws.x, (n + kLanes - 1) / kLanes * kLanes, max, c, interval, &spread);
  return spread;
}

// Appends the lanes named in `bits` to the gathered tokens; returns their new number.
FD_FN int64_t append(const Workspace& ws, V x, I id, uint32_t bits, int64_t n) {
  pack(x, bits, ws.x + n);
  pack(V(id), bits, ws.id + n);
  return n + __builtin_popcount(bits);
}

// 2. Copies the tokens of the interval into the workspace, ascending by id; gives up past `most` and answers -1.
static int64_t gather(const Row& row, const Workspace& ws, Interval interval, int64_t most = INT64_MAX) {
  const float bottom = interval.bottom();
  int64_t n = 0;
  auto gather_by = [&](auto has) FD_INLINE {
    row.each(-INFINITY, [&](int64_t g, auto x) FD_INLINE {
      if (!(ws.group_max[g] >= bottom) || n > most) return;
      for (int i = 0; i < kGroupSize; i += 4 * kLanes) {  // few vectors hold any
        M in[4];
        for (int k = 0; k < 4; ++k) in[k] = has(x[i + k * kLanes]);
        if (!bits_of(either(either(in[0], in[1]), either(in[2], in[3])))) continue;
        for (int k = 0; k < 4; ++k) {
          const int at = i + k * kLanes;
          if (bits_of(in[k])) n = append(ws, x[at], count_from(int32_t(g * kGroupSize + at)), bits_of(in[k]), n);
        }
      }
    });
  };
  if (interval.hi == INFINITY)
    gather_by([=](V x) FD_INLINE { return at_least(x, all(bottom)); });
  else
    gather_by([=](V x) FD_INLINE { return Interval::has(x, bottom, interval.hi); });
  return n > most ? -1 : n;
}

// Keeps those of n gathered tokens that lie in the interval; ids stay ascending.
static int64_t keep_between(const Workspace& ws, int64_t n, Interval interval) {
  for (int64_t i = n; i < n + kLanes; ++i) ws.x[i] = -INFINITY;
  const float bottom = interval.bottom();
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i += kLanes) {  // what is written lies at or before what was read
    const V x = load(ws.x + i);
    I id;
    memcpy(&id, ws.id + i, sizeof id);
    const uint32_t bits = bits_of(Interval::has(x, bottom, interval.hi));
    if (bits) kept = append(ws, x, id, bits, kept);
  }
  return kept;
}

// A bound that at least `rank` and few more groups' maxima reach: so many tokens at least lie at or above it. kLowest where
// there are not so many groups. Behind the maxima lie kLanes of -inf.
static float bound_by_groups(const float* group_max, int64_t groups, int64_t rank) {
  V highest = all(-INFINITY), minus_lowest = highest;
  for (int64_t g = 0; g < groups; g += kLanes) {
    const V x = load(group_max + g);
    highest = max_of(highest, x);
    minus_lowest = max_of(minus_lowest, choose(less(count_up(), all(float(groups - g))), -x, all(-INFINITY)));
  }
  float high = fmaxf(largest_lane(highest), kLowest), low = -largest_lane(minus_lowest);
  if (rank >= groups || !(low > kLowest)) return kLowest;
  // `low` is always reached by at least `rank` groups; bisect until it is not reached by many more.
  for (int round = 0; round < 12; ++round) {
    const float middle = low + (high - low) / 2;
    int64_t reached = 0;
    for (int64_t g = 0; g < groups; g += kLanes)
      reached += __builtin_popcount(bits_of(at_least(load(group_max + g), all(middle))));
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
