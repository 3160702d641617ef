// What: the loops over many tokens: group maxima, sums of exponentials, gathering, exponentials of gathered tokens.
// Contract: a row is read in groups of 256 tokens through Row::group, which answers with 256 floats wherever the row lies and
//   whatever its type is; the last group is padded. Kernels see floats only.
// Idea: four vectors in flight per loop, sums in float per lane over one group, in double across groups.
// Who does what: one thread, one row.
// Numbers: y = (x - max) * c with c = 1 / (T ln 2), never x * c - max * c, which loses the bits that cancel.
// Randomness: none.
// Cost: group_max reads at the speed of the cache; group_sums is bound by about 14 operations per vector of exponentials.
// Limits: none; rows of any length, alignment and type.

#include "../args.h"
#include "../philox.h"
#include "simd.h"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

constexpr double kLn2 = 0.693147180559945309417;
constexpr float kLowest = -3.402823466e38f;  // the smallest finite logit: -inf never survives

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

  float at(int64_t i) const { return load_as_float(base, dtype, i); }
};

struct Extent {
  float max;
  bool special;  // some logit is a NaN or infinite
};

// 1. The largest logit of the row and of each group.
static Extent row_max(const Row& row, float* group_max) {
  alignas(64) float buffer[kGroupSize];
  V finite = all(0.0f);  // x * 0 is 0 for every finite x, and a NaN for the others
  float max = -INFINITY;
  for (int64_t g = 0; g < row.groups(); ++g) {
    const float* x = row.group(g, row.at(g * kGroupSize), buffer);
    V m0 = load(x), m1 = load(x + kLanes), m2 = load(x + 2 * kLanes), m3 = load(x + 3 * kLanes);
    V f0 = m0 * 0.0f, f1 = m1 * 0.0f, f2 = m2 * 0.0f, f3 = m3 * 0.0f;
    for (int i = 4 * kLanes; i < kGroupSize; i += 4 * kLanes) {
      const V x0 = load(x + i), x1 = load(x + i + kLanes), x2 = load(x + i + 2 * kLanes), x3 = load(x + i + 3 * kLanes);
      m0 = max_of(m0, x0), m1 = max_of(m1, x1), m2 = max_of(m2, x2), m3 = max_of(m3, x3);
      f0 += x0 * 0.0f, f1 += x1 * 0.0f, f2 += x2 * 0.0f, f3 += x3 * 0.0f;
    }
    finite += (f0 + f1) + (f2 + f3);
    group_max[g] = largest_lane(max_of(max_of(m0, m1), max_of(m2, m3)));
    max = group_max[g] > max ? group_max[g] : max;
  }
  return {max, bits_of(I(finite == finite)) != (kLanes == 32 ? ~0u : (1u << kLanes) - 1)};
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

// 2. mass = sum 2^y and moment = sum 2^y y (in units of ln 2) over 256 logits.
FD_FN void group_sums(const float* x, float max, float c, double* mass, double* moment) {
  V mass0 = all(0.0f), mass1 = all(0.0f), moment0 = all(0.0f), moment1 = all(0.0f);
  for (int i = 0; i < kGroupSize; i += 2 * kLanes) {
    const V y0 = max_of((load(x + i) - max) * c, all(-125.0f)), y1 = max_of((load(x + i + kLanes) - max) * c, all(-125.0f));
    const V w0 = exp2_of(y0), w1 = exp2_of(y1);
    mass0 += w0, mass1 += w1;
    moment0 += w0 * y0, moment1 += w1 * y1;
  }
  *mass = sum_of_lanes(mass0 + mass1);
  *moment = sum_of_lanes(moment0 + moment1);
}

// Sums over the whole row at scale c; leaves each group's mass in `group_mass` for the draw.
static Sums row_sums(const Row& row, float max, float c, double* group_mass) {
  alignas(64) float buffer[kGroupSize];
  Sums sums;
  for (int64_t g = 0; g < row.groups(); ++g) {
    double mass, moment;
    group_sums(row.group(g, -INFINITY, buffer), max, c, &mass, &moment);
    group_mass[g] = mass;
    sums.mass += mass;
    sums.moment += moment;
  }
  sums.moment *= kLn2;
  return sums;
}

// Sums over n gathered tokens; leaves y and w = 2^y in the workspace, where y and w are wanted later.
static Sums gathered_sums(const Workspace& ws, int64_t n, float max, float c) {
  for (int64_t i = n; i < n + kLanes; ++i) ws.x[i] = -INFINITY;
  Sums sums;
  sums.n = double(n);
  for (int64_t i = 0; i < n; i += kLanes) {
    const V y = max_of((load(ws.x + i) - max) * c, all(-125.0f));
    const V w = exp2_of(y);
    store(ws.y + i, y);
    store(ws.w + i, w);
    sums.mass += sum_of_lanes(w);
    sums.moment += sum_of_lanes(w * y);
  }
  sums.moment *= kLn2;
  return sums;
}

// The second and first moments that a standard deviation and a sum of p^2 need, over n gathered tokens or the row.
struct Spread {
  double n = 0, sum = 0, squares = 0;  // of x - max
  double mass2 = 0;                    // sum exp(2 d)
};

FD_FN void add_spread(const float* x, int64_t n, float max, float c, Spread* spread) {
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] == -INFINITY) continue;
    const double d = double(x[i]) - double(max);
    spread->n += 1, spread->sum += d, spread->squares += d * d;
  }
  V mass2 = all(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) mass2 += exp2_of((load(x + i) - max) * c * 2.0f);
  spread->mass2 += sum_of_lanes(mass2);
  for (; i < n; ++i) spread->mass2 += exp2((double(x[i]) - double(max)) * c * 2);
}

static Spread row_spread(const Row& row, float max, float c) {
  alignas(64) float buffer[kGroupSize];
  Spread spread;
  for (int64_t g = 0; g < row.groups(); ++g)
    add_spread(row.group(g, -INFINITY, buffer), kGroupSize, max, c, &spread);
  return spread;
}

// 3. Copies the tokens of [lo, hi] into the workspace, ascending by id, looking only into groups that can hold one.
static int64_t gather(const Row& row, const Workspace& ws, float lo, float hi) {
  alignas(64) float buffer[kGroupSize];
  if (!(lo > kLowest)) lo = kLowest;
  int64_t n = 0;
  for (int64_t g = 0; g < row.groups(); ++g) {
    if (!(ws.group_max[g] >= lo)) continue;
    const float* x = row.group(g, -INFINITY, buffer);
    for (int i = 0; i < kGroupSize; i += kLanes) {
      const V v = load(x + i);
      const uint32_t bits = bits_of(I(v >= lo) & I(v <= hi));
      if (bits) n = append(v, int32_t(g * kGroupSize + i), bits, ws.x, ws.id, n);
    }
  }
  return n;
}

// Keeps those of n gathered tokens that lie in [lo, hi]; ids stay ascending.
static int64_t keep_between(const Workspace& ws, int64_t n, float lo, float hi) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float x = ws.x[i];
    ws.x[kept] = x, ws.id[kept] = ws.id[i];
    kept += x >= lo && x <= hi;
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
  for (int round = 0; round < 24; ++round) {
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
