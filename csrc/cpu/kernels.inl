// What: the loops over many tokens: group maxima, sums of exponentials, gathering.
// Contract: a row is read in groups of 256 tokens through Row::group, which answers with 256 floats wherever the row lies and
//   whatever its type is; the last group is padded. Kernels see floats only.
// Idea: several vectors in flight per loop, sums in float per lane over one group, in double across groups; a group
//   whose maximum lies below the interval is not looked at.
// Who does what: one thread, one row.
// Numbers: y = (x - max) * c with c = 1 / (T ln 2), never x * c - max * c, which loses the bits that cancel.
// Randomness: none.
// Cost: row_max reads at the speed of the cache; row_sums is bound by 13 operations a vector, nine of them the exponential.
// Limits: none; rows of any length, alignment and type.

#include "../args.h"
#include "../philox.h"
#include "simd.h"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

constexpr double kLn2 = 0.693147180559945309417;
constexpr float kLowest = -3.402823466e38f;  // the smallest finite logit: -inf never survives
constexpr int kStep = kLanes == 4 ? 2 : 4;   // vectors side by side; SSE has 16 registers, of which constants take half
constexpr int kChunk = 16 * kLanes;          // tokens added up in float, 16 to a lane, before they go on in double
static_assert(kGroupSize % kChunk == 0, "a group is a whole number of chunks");

// kLanes logits of a group as floats, from token i of it on.
template <int kDtype>
struct Lanes {
  const void* first;
  FD_FN V load_of(const void* first, int i) {
    if (kDtype == kFloat32) return load(static_cast<const float*>(first) + i);
    const uint16_t* h = static_cast<const uint16_t*>(first) + i;
    return kDtype == kFloat16 ? load_f16(h) : load_bf16(h);
  }
  V operator[](int i) const { return load_of(first, i); }
};

#define FD_INLINE __attribute__((always_inline))  // for the lambdas given to Row::each: they are the kernels

struct Row {
  const void* base;
  int dtype;
  int64_t limit;

  int64_t groups() const { return (limit + kGroupSize - 1) / kGroupSize; }

  // The 256 logits of group g, in place or copied to `buffer`; past the end, `pad`.
  const float* group(int64_t g, float pad, float* buffer) const {
    const int64_t first = g * kGroupSize, n = limit - first < kGroupSize ? limit - first : kGroupSize;
    if (dtype == kFloat32) {
      const float* x = static_cast<const float*>(base) + first;
      if (n == kGroupSize) return x;
      memcpy(buffer, x, size_t(n) * 4);
    } else {
      const uint16_t* h = static_cast<const uint16_t*>(base) + first;
      int64_t i = 0;
      if (dtype == kFloat16)
        for (; i + kLanes <= n; i += kLanes) store(buffer + i, load_f16(h + i));
      else
        for (; i + kLanes <= n; i += kLanes) store(buffer + i, load_bf16(h + i));
      for (; i < n; ++i) buffer[i] = load_as_float(base, dtype, first + i);
    }
    for (int64_t i = n; i < kGroupSize; ++i) buffer[i] = pad;
    return buffer;
  }

  // Calls look(g, x) for each group g, with its Lanes of whatever type: x[i] is a vector of floats. The last group, if it is
  // not whole, is padded.
  template <class Look>
  FD_INLINE void each(float pad, Look look) const {
    const int64_t whole = limit / kGroupSize, bytes = kGroupSize * bytes_of(dtype);
    const char* at = static_cast<const char*>(base);
    if (dtype == kFloat32)
      for (int64_t g = 0; g < whole; ++g) look(g, Lanes<kFloat32>{at + g * bytes});
    else if (dtype == kFloat16)
      for (int64_t g = 0; g < whole; ++g) look(g, Lanes<kFloat16>{at + g * bytes});
    else
      for (int64_t g = 0; g < whole; ++g) look(g, Lanes<kBFloat16>{at + g * bytes});
    alignas(64) float buffer[kGroupSize];
    if (whole * kGroupSize < limit) look(whole, Lanes<kFloat32>{group(whole, pad, buffer)});
  }

  float at(int64_t i) const { return load_as_float(base, dtype, i); }
};

// The survivors' logits; -inf is in no interval.
struct Interval {
  float lo = -INFINITY, hi = INFINITY;

  float bottom() const { return lo > kLowest ? lo : kLowest; }
  bool open() const { return lo == -INFINITY && hi == INFINITY; }
  FD_FN M has(V x, float bottom, float hi) { return both(at_least(x, all(bottom)), at_least(all(hi), x)); }
};

struct Extent {
  float max;
  bool special;  // some logit may be a NaN or infinite
};

// 1. The largest logit of the row and of each group.
static Extent row_max(const Row& row, float* group_max) {
  V total = all(0.0f);  // not finite if any logit is not; nor if 10^38 is near, which the caller sorts out
  V maximum = all(-INFINITY);
  const float pad = row.at((row.limit - 1) / kGroupSize * kGroupSize);  // one of the last group's own
  row.each(pad, [&](int64_t g, auto x) FD_INLINE {
    V m0 = held(x[0]), m1 = held(x[kLanes]), m2 = held(x[2 * kLanes]), m3 = held(x[3 * kLanes]);
    V t0 = m0, t1 = m1, t2 = m2, t3 = m3;
    for (int i = 4 * kLanes; i < kGroupSize; i += 4 * kLanes) {
      const V x0 = held(x[i]), x1 = held(x[i + kLanes]);
      const V x2 = held(x[i + 2 * kLanes]), x3 = held(x[i + 3 * kLanes]);
      m0 = max_of(m0, x0), m1 = max_of(m1, x1), m2 = max_of(m2, x2), m3 = max_of(m3, x3);
      t0 += x0, t1 += x1, t2 += x2, t3 += x3;
    }
    total += (t0 + t1) + (t2 + t3);
    const V m = max_of(max_of(m0, m1), max_of(m2, m3));
    group_max[g] = largest_lane(m);
    maximum = max_of(maximum, m);
  });
  const V rest = total - total;  // 0, or a NaN
  return {largest_lane(maximum), bits_of(at_least(rest, rest)) != (1u << kLanes) - 1};
}

struct Specials {
  int64_t nan = 0, inf = 0, minus_inf = 0;
};

static Specials count_specials(const Row& row) {
  Specials found;
  for (int64_t i = 0; i < row.limit; ++i) {
    const float x = row.at(i);
    found.nan += x != x, found.inf += x == INFINITY, found.minus_inf += x == -INFINITY;
  }
  return found;
}

// 2. Sums over the survivors of a row at scale c; leaves each group's mass in `group_mass` for the draw. `n` counts them if the
//    interval is not open; without kMoment, the moment is a NaN.
template <bool kOpen, bool kMoment>
static Sums row_sums_in(const Row& row, const Workspace& ws, float max, float c, Interval interval) {
  const V max_v = all(max), c_v = all(c), least = all(least_drop(c));
  const float bottom = interval.bottom();
  D masses{}, moments{};
  int64_t n = 0;
  row.each(-INFINITY, [&](int64_t g, auto x) FD_INLINE {
    ws.group_mass[g] = 0;
    if (!(ws.group_max[g] >= bottom)) return;
    D group_mass{};
    for (int chunk = 0; chunk < kGroupSize; chunk += kChunk) {
      V mass = all(0.0f), moment = all(0.0f);
      for (int i = chunk; i < chunk + kChunk; i += kStep * kLanes) {
        V d[kStep], w[kStep];
        for (int k = 0; k < kStep; ++k) d[k] = max_of(x[i + k * kLanes] - max_v, least);
        exp2_of<kStep>(d, c_v, w);
        for (int k = 0; !kOpen && k < kStep; ++k) {
          const M in = Interval::has(x[i + k * kLanes], bottom, interval.hi);
          n += __builtin_popcount(bits_of(in));
          w[k] = zero_unless(in, w[k]);
        }
        for (int k = 0; k < kStep; ++k) mass += w[k];
        for (int k = 0; kMoment && k < kStep; ++k) moment += w[k] * d[k];
      }
      group_mass += pairs_of(mass);
      if (kMoment) moments += pairs_of(moment);
    }
    ws.group_mass[g] = sum_of_lanes(group_mass);
    masses += group_mass;
  });
  return {double(n), sum_of_lanes(masses), kMoment ? sum_of_lanes(moments) * double(c) * kLn2 : double(NAN)};
}

static Sums row_sums(const Row& row, const Workspace& ws, float max, float c, Interval interval, bool moment) {
  if (interval.open()) return (moment ? row_sums_in<true, true> : row_sums_in<true, false>)(row, ws, max, c, interval);
  return (moment ? row_sums_in<false, true> : row_sums_in<false, false>)(row, ws, max, c, interval);
}

// Sums over n gathered tokens; leaves y and w = 2^y in the workspace.
static Sums gathered_sums(const Workspace& ws, int64_t n, float max, float c) {
  for (int64_t i = n; i < n + kStep * kLanes; ++i) ws.x[i] = -INFINITY;
  const V least = all(least_drop(c));
  D masses{}, moments{};
  for (int64_t i = 0; i < n; i += kStep * kLanes) {
    V d[kStep], w[kStep], mass = all(0.0f), moment = all(0.0f);
    for (int k = 0; k < kStep; ++k) d[k] = max_of(load(ws.x + i + k * kLanes) - max, least);
    exp2_of<kStep>(d, all(c), w);
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
  double mass2 = 0;                    // sum exp(2 d)
};

// Over n logits, n a multiple of kLanes, of which those in the interval count.
FD_FN void add_spread(const float* x, int64_t n, float max, float c, Interval interval, Spread* spread) {
  const float bottom = interval.bottom();
  V sums = all(0.0f), squares = all(0.0f), masses2 = all(0.0f);
  const V least = all(least_drop(2 * c));
  for (int64_t i = 0; i < n; i += kLanes) {
    const M in = Interval::has(load(x + i), bottom, interval.hi);
    const V d = zero_unless(in, load(x + i) - max);
    spread->n += __builtin_popcount(bits_of(in));
    sums += d;
    squares += d * d;
    masses2 += zero_unless(in, exp2_of(max_of(load(x + i) - max, least), all(2 * c)));
    if (i % kChunk != kChunk - kLanes && i + kLanes < n) continue;
    double sum = sum_of_lanes(pairs_of(sums)), square = sum_of_lanes(pairs_of(squares));
    if (!(square < INFINITY)) {  // logits near the lowest float, as masks use them: only double holds their squares
      sum = square = 0;
      for (int64_t k = i / kChunk * kChunk; k < i + kLanes; ++k) {
        const double e = x[k] >= bottom && x[k] <= interval.hi ? double(x[k]) - double(max) : 0.0;
        sum += e, square += e * e;
      }
    }
    spread->sum += sum, spread->squares += square;
    spread->mass2 += sum_of_lanes(pairs_of(masses2));
    sums = squares = masses2 = all(0.0f);
  }
}

static Spread row_spread(const Row& row, float max, float c, Interval interval) {
  alignas(64) float buffer[kGroupSize];
  Spread spread;
  for (int64_t g = 0; g < row.groups(); ++g)
    add_spread(row.group(g, -INFINITY, buffer), kGroupSize, max, c, interval, &spread);
  return spread;
}

static Spread gathered_spread(const Workspace& ws, int64_t n, float max, float c) {
  for (int64_t i = n; i < n + kLanes; ++i) ws.x[i] = -INFINITY;
  Spread spread;
  add_spread(ws.x, (n + kLanes - 1) / kLanes * kLanes, max, c, {}, &spread);
  return spread;
}

// Appends the lanes named in `bits` to the gathered tokens; returns their new number.
FD_FN int64_t append(const Workspace& ws, V x, I id, uint32_t bits, int64_t n) {
  pack(x, bits, ws.x + n);
  pack(V(id), bits, ws.id + n);
  return n + __builtin_popcount(bits);
}

// 3. Copies the tokens of the interval into the workspace, ascending by id; gives up past `most` and answers -1.
static int64_t gather(const Row& row, const Workspace& ws, Interval interval, int64_t most = INT64_MAX) {
  const float bottom = interval.bottom();
  int64_t n = 0;
  row.each(-INFINITY, [&](int64_t g, auto x) FD_INLINE {
    if (!(ws.group_max[g] >= bottom) || n > most) return;
    for (int i = 0; i < kGroupSize; i += kLanes) {
      const V v = x[i];
      const uint32_t bits = bits_of(Interval::has(v, bottom, interval.hi));
      if (bits) n = append(ws, v, count_from(int32_t(g * kGroupSize + i)), bits, n);
    }
  });
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
// there are not so many groups.
static float bound_by_groups(const float* group_max, int64_t groups, int64_t rank) {
  float high = kLowest, low = INFINITY;
  for (int64_t g = 0; g < groups; ++g) {
    high = group_max[g] > high ? group_max[g] : high;
    low = group_max[g] < low ? group_max[g] : low;
  }
  if (rank >= groups || !(low > kLowest)) return kLowest;
  // `low` is always reached by at least `rank` groups; bisect until it is not reached by many more.
  for (int round = 0; round < 12; ++round) {
    const float middle = low + (high - low) / 2;
    int64_t reached = 0;
    for (int64_t g = 0; g < groups; ++g) reached += group_max[g] >= middle;
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
