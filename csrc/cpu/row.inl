// What: a row of logits as vectors of floats, whatever type it holds and wherever it lies; and an interval of logits.
// Contract: kernels see groups of 256 floats; the last group is padded. 16-bit logits are converted in registers.
// Idea: a pass is a lambda given to Row::each, which is compiled once for each type of logits.
// Who does what: one thread, one row. Numbers: exact. Randomness: none. Cost: that of the pass.
// Limits: none; rows of any length, alignment and type.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../dtype.h"
#include "../order.h"
#include "../philox.h"
#include "simd.inl"

namespace fastdecode {
namespace FD_TARGET {

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
  FD_FN M has(V x, float bottom, float hi) { return both(at_least(x, broadcast(bottom)), at_least(broadcast(hi), x)); }
};

}  // namespace FD_TARGET
}  // namespace fastdecode
