// What: a row made ready: its largest logit, the largest of each group of 256, and what is special in it.
// Contract: after this the row holds finite logits and -inf. A row with a NaN or without a finite logit is flagged; where logits are
//   +inf, those tokens share all mass, and the row becomes a copy that says so.
// Idea: integers compare NaN and infinities without a branch, so one pass finds the maxima and whether a closer look is needed.
// Who does what: one thread, one row. Numbers: exact. Randomness: none.
// Cost: one read of the row at the speed of the cache; a second one where something is special. Limits: none.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../args.h"
#include "../dtype.h"
#include "../order.h"
#include "row.inl"
#include "simd.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

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
  V maximum = broadcast(-INFINITY);
  const float pad = row.at((row.limit - 1) / kGroupSize * kGroupSize);  // one of the last group's own
  row.each(pad, [&](int64_t g, auto x) FD_INLINE {
    V m0 = in_register(x[0]), m1 = in_register(x[kLanes]), m2 = in_register(x[2 * kLanes]),
      m3 = in_register(x[3 * kLanes]);
    U f0 = twice(m0), f1 = twice(m1), f2 = twice(m2), f3 = twice(m3);
#pragma GCC unroll kUnroll
    for (int i = 4 * kLanes; i < kGroupSize; i += 4 * kLanes) {
      const V x0 = in_register(x[i]), x1 = in_register(x[i + kLanes]);
      const V x2 = in_register(x[i + 2 * kLanes]), x3 = in_register(x[i + 3 * kLanes]);
      m0 = max_of(m0, x0), m1 = max_of(m1, x1), m2 = max_of(m2, x2), m3 = max_of(m3, x3);
      f0 = larger(f0, twice(x0)), f1 = larger(f1, twice(x1)), f2 = larger(f2, twice(x2)), f3 = larger(f3, twice(x3));
    }
    farthest = larger(farthest, larger(larger(f0, f1), larger(f2, f3)));
    const V m = max_of(max_of(m0, m1), max_of(m2, m3));
    group_max[g] = reduce_max(m);
    maximum = max_of(maximum, m);
  });
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits = farthest[lane] > bits ? farthest[lane] : bits;
  const bool special = bits >= 0xff000000u;
  return {reduce_max(maximum), special, special ? -INFINITY : -float_of_bits(bits >> 1)};
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
    const int16_t above = reduce_max(most);
    group_max[g] = value_of(above < 0 ? reduce_min(least) : uint16_t(above));  // only negative ones: the first of them
  }
  const int16_t above = reduce_max(highest);
  const uint16_t nearest = reduce_min(first), farthest = reduce_max(last);  // to zero, of those on one side of it
  return {value_of(above < 0 ? nearest : uint16_t(above)), above >= infinity || farthest >= (0x8000 | infinity),
          value_of(farthest < 0x8000 ? nearest : farthest)};
}

static Extent row_max(const Row& row, float* group_max) {
  store(group_max + row.groups(), broadcast(-INFINITY));  // for those who look at whole vectors of them
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

// A row made ready: what its logits are, once specials are dealt with.
struct Opened {
  Row row;
  Extent extent;
  Status status = kOk;
  bool overflow = false;  // it held +inf; `row` is a copy with 0 there and -inf elsewhere
  int64_t alive = 0;      // tokens above -inf
};

static Opened open_row(const Logits& logits, int64_t r, const Workspace& ws) {
  const char* base = static_cast<const char*>(logits.base) + r * logits.row_stride * bytes_of(logits.dtype);
  Opened opened{{base, logits.dtype, logits.limit}, {}};
  opened.extent = row_max(opened.row, ws.group_max);
  opened.alive = logits.limit;
  if (!opened.extent.special) return opened;
  const Specials found = count_specials(opened.row);
  if (found.nan) {
    opened.status = kNan;
  } else if (found.inf) {
    for (int64_t i = 0; i < logits.limit; ++i) ws.row[i] = opened.row.at(i) == INFINITY ? 0.0f : -INFINITY;
    opened.row = {ws.row, kFloat32, logits.limit};
    opened.extent = row_max(opened.row, ws.group_max);
    opened.overflow = true;
    opened.alive = found.inf;
  } else {
    opened.alive = logits.limit - found.minus_inf;
    if (opened.alive == 0) opened.status = kEmpty;
  }
  return opened;
}

}  // namespace FD_TARGET
}  // namespace fastdecode
