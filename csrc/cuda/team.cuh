// What: the threads of one row: a cluster of blocks, and the few things they tell each other.
// Contract: every function is called by all threads of the block (over_block) or of the cluster (over_cluster) together, and
//   answers the same to all of them.
// Idea: integers only. A sum of integers is the same in any order, so no answer depends on how many blocks, warps or
//   atomics took part: that is what makes a row's token independent of the launch.
// Who does what: lanes add up by shuffles, warps through `part`, blocks by writing into each other's `box`. Both are used in
//   turns, so that one barrier a call is enough: who writes a turn again has passed a barrier after all had read it.
// Numbers: fixed point, see kSumBits and kFineBits. Randomness: none.
// Cost: one block barrier, or one block and one cluster barrier. Limits: 16 blocks, 1024 threads, 8 numbers a call.
#pragma once

#include "platform.cuh"

namespace fastdecode {
namespace cuda {

constexpr int kLanes = 32, kMaxWarps = 32, kMaxRanks = 16, kSlots = 8;
constexpr double kLn2 = 0.693147180559945309417;
constexpr float kLowest = -3.402823466e38f;  // the smallest finite logit: -inf never survives
constexpr int kMaxGroups = 4096;
constexpr int64_t kMaxVocab = int64_t(kMaxGroups) * kGroupSize;

// Sums over a row are whole numbers of 2^-42, those of a group of 2^-47: a token's weight is at most 1.
constexpr int kSumBits = 42, kFineBits = 47;
static_assert(kMaxVocab <= int64_t(1) << (62 - kSumBits), "a row's sum fits in 62 bits");
static_assert(kGroupSize <= 1 << (62 - kFineBits), "a group's sum fits in 62 bits");

FD_DEVICE int lane() { return thread() % kLanes; }
FD_DEVICE int warp() { return thread() / kLanes; }
FD_DEVICE int warps() { return threads() / kLanes; }

struct Mailbox {
  int64_t part[2][kMaxWarps][kSlots];
  int64_t box[2][kMaxRanks][kSlots];
  double chunk[2][kMaxGroups / kLanes];  // for sums in a fixed order
  int gathered;                          // tokens this block has put on its list
};

// The first `sums` numbers are added, of the others the largest is taken.
template <int sums>
struct SumThenMost {
  FD_MEMBER int64_t operator()(int i, int64_t a, int64_t b) const { return i < sums ? a + b : a > b ? a : b; }
};
using Sum = SumThenMost<kSlots>;
using Most = SumThenMost<0>;

struct Team {
  Mailbox* mail;
  int block_turn, cluster_turn;

  template <class Op, int n>
  FD_MEMBER void over_warp(Op op, int64_t (&v)[n]) {
#pragma unroll
    for (int mask = kLanes / 2; mask; mask /= 2)
#pragma unroll
      for (int i = 0; i < n; ++i) v[i] = op(i, v[i], shuffle_xor(v[i], mask));
  }

  template <class Op, int n>
  FD_MEMBER void over_block(Op op, int64_t (&v)[n]) {
    int64_t(*part)[kSlots] = leave_part(op, v);
#pragma unroll
    for (int i = 0; i < n; ++i) v[i] = part[0][i];
    for (int w = 1; w < warps(); ++w)
#pragma unroll
      for (int i = 0; i < n; ++i) v[i] = op(i, v[i], part[w][i]);
  }

  template <class Op, int n>
  FD_MEMBER void over_cluster(Op op, int64_t (&v)[n]) {
    if (ranks() == 1) return over_block(op, v);
    int64_t(*part)[kSlots] = leave_part(op, v);
    const int i = thread() % kSlots, to = thread() / kSlots;
    if (i < n && to < ranks()) {
      int64_t mine = part[0][i];
      for (int w = 1; w < warps(); ++w) mine = op(i, mine, part[w][i]);
      of_rank(&mail->box[cluster_turn][rank()][i], to)[0] = mine;
    }
    sync_cluster();
    int64_t(*box)[kSlots] = mail->box[cluster_turn];
    cluster_turn ^= 1;
#pragma unroll
    for (int k = 0; k < n; ++k) v[k] = box[0][k];
    for (int r = 1; r < ranks(); ++r)
#pragma unroll
      for (int k = 0; k < n; ++k) v[k] = op(k, v[k], box[r][k]);
  }

  // One number of each block: what all lower ranks have, in `before`, and all together.
  FD_MEMBER int64_t over_ranks(int64_t mine, int64_t (&each)[kMaxRanks]) {
    if (thread() < ranks()) of_rank(&mail->box[cluster_turn][rank()][0], thread())[0] = mine;
    sync_cluster();
    int64_t all = 0;
    for (int r = 0; r < ranks(); ++r) all += each[r] = mail->box[cluster_turn][r][0];
    cluster_turn ^= 1;
    return all;
  }

  // v becomes the sum over all threads of the block below this one.
  template <int n>
  FD_MEMBER void below_in_block(int64_t (&v)[n]) {
    int64_t mine[n], up[n];
#pragma unroll
    for (int i = 0; i < n; ++i) {
      mine[i] = up[i] = v[i];
      for (int step = 1; step < kLanes; step *= 2) {
        const int64_t other = shuffle(up[i], lane() >= step ? lane() - step : lane());
        up[i] += lane() >= step ? other : 0;
      }
    }
    int64_t(*part)[kSlots] = mail->part[block_turn];
    if (lane() == kLanes - 1)
#pragma unroll
      for (int i = 0; i < n; ++i) part[warp()][i] = up[i];
    sync_block();
    block_turn ^= 1;
#pragma unroll
    for (int i = 0; i < n; ++i) v[i] = up[i] - mine[i];
    for (int w = 0; w < warp(); ++w)
#pragma unroll
      for (int i = 0; i < n; ++i) v[i] += part[w][i];
  }

 private:
  template <class Op, int n>
  FD_MEMBER int64_t (*leave_part(Op op, int64_t (&v)[n]))[kSlots] {
    static_assert(n <= kSlots, "");
    over_warp(op, v);
    int64_t(*part)[kSlots] = mail->part[block_turn];
    if (lane() == 0)
#pragma unroll
      for (int i = 0; i < n; ++i) part[warp()][i] = v[i];
    sync_block();
    block_turn ^= 1;
    return part;
  }
};

// ---- numbers

// Logits as unsigned numbers in the same order; equal floats, 0 and -0 among them, are the same number. 0 is no logit's.
FD_DEVICE uint32_t key_of(float x) {
  const uint32_t bits = bits_of_float(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

FD_DEVICE float float_of_key(uint32_t key) { return float_of_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// x in [0, 8] as a whole number of 2^-bits, rounded down: two conversions to 32 bits are cheaper than one to 64.
template <int bits>
FD_DEVICE int64_t fixed_of(float x) {
  constexpr int kHigh = 20, kLow = bits - kHigh;
  const float scaled = x * float(1 << kHigh);
  const uint32_t high = uint32_t(scaled);
  const uint32_t low = uint32_t((scaled - float(high)) * float(1 << kLow));
  return (int64_t(high) << kLow) + low;
}

// The same for the sum over a warp, exact but for the rounding of each lane's x.
FD_DEVICE int64_t fine_sum_in_warp(float x) {
  constexpr int kHigh = 20, kLow = kFineBits - kHigh;
  static_assert(kLow + 5 <= 32, "32 lanes' low parts fit in 32 bits");
  const float scaled = x * float(1 << kHigh);
  const uint32_t high = uint32_t(scaled);
  const uint32_t low = uint32_t((scaled - float(high)) * float(1 << kLow));
  return (int64_t(sum_in_warp(high)) << kLow) + int64_t(sum_in_warp(low));
}

FD_DEVICE float sum_of_8(const float (&v)[8]) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

FD_DEVICE double sum_in_warp_in_order(double x) {
#pragma unroll
  for (int mask = kLanes / 2; mask; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

}  // namespace cuda
}  // namespace fastdecode
