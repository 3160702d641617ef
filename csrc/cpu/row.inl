// What: a row of logits as floats, whatever it holds and wherever it lies, and its maxima.
// Contract: kernels see groups of 256 floats; the last group is padded. 16-bit logits are converted in registers.
// Idea: one look at the row for the largest logit of each group, which tells later passes what they need not look at.
// Who does what: one thread, one row. Numbers: exact. Randomness: none.
// Cost: row_max reads at the speed of the cache. Limits: none; rows of any length, alignment and type.

#include "../args.h"
#include "../philox.h"
#include "exp2.h"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

constexpr double kLn2 = 0.693147180559945309417;
constexpr int kStep =
    kLanes == 16 ? 4 : 2;  // vectors side by side; below AVX-512 there are 16 registers, and constants take half
constexpr int kChunk =
    kLanes < 8 ? 128 : kGroupSize;  // tokens added up in float, 16 or 32 to a lane, before they go on in double
constexpr int kUnroll =
    kLanes == 16 ? 16 : 1;  // all of a chunk, or nothing: below AVX-512 it would run out of registers
static_assert(kGroupSize % kChunk == 0, "a group is a whole number of chunks");

// kLanes logits of a group as floats, from token i of it on; kPadded where the row ends inside the group.
template <int kDtype, bool kIsPadded = false>
struct Lanes {
  static constexpr bool kPadded = kIsPadded;
  static constexpr int kType = kDtype;
  static constexpr bool kByParity = kDtype == kBFloat16;
  const void* first;
  FD_FN V load_of(const void* first, int i) {
    if (kDtype == kFloat32) return load(static_cast<const float*>(first) + i);
    const uint16_t* h = static_cast<const uint16_t*>(first) + i;
    return kDtype == kFloat16 ? load_f16(h) : load_bf16(h);
  }
  V operator[](int i) const { return load_of(first, i); }
  float at(int i) const {
    if (kDtype == kFloat16) return value_of_f16(static_cast<const uint16_t*>(first)[i]);
    return load_as_float(first, kDtype, i);
  }

  // Stores the logits named by a bit each, in order, and up to four more; answers how many.
  int64_t append(const uint8_t* bits, float* to) const {
    uint64_t words[kGroupSize / 64];
    memcpy(words, bits, sizeof words);
    if (!(words[0] | words[1] | words[2] | words[3])) return 0;
    int64_t n = 0;
    for (int w = 0; w < kGroupSize / 64; ++w) {
      const int count = __builtin_popcountll(words[w]);
      for (int i = 0; i == 0 || i < count; i += 4)
        for (int k = 0; k < 4; ++k, words[w] &= words[w] - 1)
          to[n + i + k] = at(64 * w + __builtin_ctzll(words[w] | uint64_t(1) << 63));
      n += count;
    }
    return n;
  }

  // The 2 kLanes logits from i on, in whatever order is quick: halves parted by_parity, or one half after the other.
  void pair(int i, V* two) const {
    if (kByParity)
      load_bf16_by_parity(static_cast<const uint16_t*>(first) + i, two);
    else
      two[0] = load_of(first, i), two[1] = load_of(first, i + kLanes);
  }
  // The sum of sums over pairs, as if the logits had come one half after the other: a row answers alike in every type.
  V sum_of_pair(V* two) const {
    if (kByParity) interleave(two);
    return two[0] + two[1];
  }
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
    if (whole * kGroupSize < limit) look(whole, Lanes<kFloat32, true>{group(whole, pad, buffer)});
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
  bool special;             // some logit may be a NaN or infinite
  float least = -INFINITY;  // no logit is smaller; -INFINITY where nobody looked
};

// The largest logit of the row and of each group. Without their signs, in integers, NaN and infinities come last: the
// largest of those tells of specials, and bounds the smallest logit, at the price of half an addition.
static Extent row_max_of_floats(const Row& row, float* group_max) {
  auto larger = [](U a, U b) FD_INLINE { return a > b ? a : b; };
  auto twice = [](V x) FD_INLINE { return U(x) + U(x); };  // the sign falls out
  U farthest{};
  V maximum = all(-INFINITY);
  const float pad = row.at((row.limit - 1) / kGroupSize * kGroupSize);  // one of the last group's own
  row.each(pad, [&](int64_t g, auto x) FD_INLINE {
    V m0 = held(x[0]), m1 = held(x[kLanes]), m2 = held(x[2 * kLanes]), m3 = held(x[3 * kLanes]);
    U f0 = twice(m0), f1 = twice(m1), f2 = twice(m2), f3 = twice(m3);
#pragma GCC unroll kUnroll
    for (int i = 4 * kLanes; i < kGroupSize; i += 4 * kLanes) {
      const V x0 = held(x[i]), x1 = held(x[i + kLanes]);
      const V x2 = held(x[i + 2 * kLanes]), x3 = held(x[i + 3 * kLanes]);
      m0 = max_of(m0, x0), m1 = max_of(m1, x1), m2 = max_of(m2, x2), m3 = max_of(m3, x3);
      f0 = larger(f0, twice(x0)), f1 = larger(f1, twice(x1)), f2 = larger(f2, twice(x2)), f3 = larger(f3, twice(x3));
    }
    farthest = larger(farthest, larger(larger(f0, f1), larger(f2, f3)));
    const V m = max_of(max_of(m0, m1), max_of(m2, m3));
    group_max[g] = largest_lane(m);
    maximum = max_of(maximum, m);
  });
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits = farthest[lane] > bits ? farthest[lane] : bits;
  const bool special = bits >= 0xff000000u;
  return {largest_lane(maximum), special, special ? -INFINITY : -float_of_bits(bits >> 1)};
}

// 16-bit logits as integers, twice as many to a vector and nothing to convert. Signed, they are in order from 0 up, and negative
// ones below; unsigned, negative ones come last and in the reverse order.
static Extent row_max_of_halves(const Row& row, float* group_max) {
  const uint16_t* h = static_cast<const uint16_t*>(row.base);
  const int16_t infinity = row.dtype == kFloat16 ? 0x7c00 : 0x7f80;
  auto larger = [](auto a, auto b) FD_INLINE { return a > b ? a : b; };
  auto smaller = [](auto a, auto b) FD_INLINE { return a < b ? a : b; };
  auto value_of = [&](uint16_t half) FD_INLINE { return from_half(half, row.dtype); };
  H highest = H{} - 0x7fff - 1;
  UH first = ~UH{}, last = UH{};
  for (int64_t g = 0; g < row.groups(); ++g, h += kGroupSize) {
    uint16_t buffer[kGroupSize];
    const int64_t left = row.limit - g * kGroupSize;
    const uint16_t* from = h;
    if (left < kGroupSize) {
      for (int i = 0; i < kGroupSize; ++i) buffer[i] = h[i < left ? i : 0];
      from = buffer;
    }
    H high[2] = {load_halves(from), load_halves(from + 2 * kLanes)};
    UH low[2] = {UH(high[0]), UH(high[1])}, top[2] = {low[0], low[1]};
    for (int i = 4 * kLanes; i < kGroupSize; i += 4 * kLanes)
      for (int k = 0; k < 2; ++k) {
        const H x = load_halves(from + i + 2 * k * kLanes);
        high[k] = larger(high[k], x), low[k] = smaller(low[k], UH(x)), top[k] = larger(top[k], UH(x));
      }
    const H most = larger(high[0], high[1]);
    const UH least = smaller(low[0], low[1]);
    highest = larger(highest, most), first = smaller(first, least), last = larger(last, larger(top[0], top[1]));
    const int16_t above = largest_lane(most);
    group_max[g] =
        value_of(above < 0 ? smallest_lane(least) : uint16_t(above));  // only negative ones: the first of them
  }
  const int16_t above = largest_lane(highest);
  const uint16_t nearest = smallest_lane(first), farthest = largest_lane(last);  // to zero, of those on one side of it
  return {value_of(above < 0 ? nearest : uint16_t(above)), above >= infinity || farthest >= (0x8000 | infinity),
          value_of(farthest < 0x8000 ? nearest : farthest)};
}

static Extent row_max(const Row& row, float* group_max) {
  store(group_max + row.groups(), all(-INFINITY));  // for those who look at whole vectors of them
  return row.dtype == kFloat32 ? row_max_of_floats(row, group_max) : row_max_of_halves(row, group_max);
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

}  // namespace FD_TARGET
}  // namespace fastdecode
