// What: the threads of one row: a cluster of blocks, and the few things they tell each other.
// Contract: every function is called by all threads of the block (over_block) or of the cluster (over_cluster) together, and
//   answers the same to all of them.
// Idea: nothing may depend on how many blocks and warps a launch has: integers are added in any order, doubles in one order that
//   only the tokens' ids decide. That is what makes a row's token independent of its batch and of the launch.
// Who does what: lanes add up by shuffles, warps through `part`, blocks by writing into each other's `box`. Both are used in
//   turns, so that one barrier a call is enough: who writes a turn again has passed a barrier after all had read it.
// Numbers: counts and keys as 64-bit integers, masses and moments as doubles. Randomness: none.
// Cost: one block barrier, or one block and one cluster barrier. Limits: 16 blocks, 1024 threads, 8 numbers a call.
#pragma once

#include "../order.h"
#include "platform.cuh"

namespace fastdecode {
namespace cuda {

constexpr int kLanes = 32, kMaxWarps = 32, kMaxRanks = 16, kSlots = 8;
constexpr int kMaxGroups = 4096;
constexpr int64_t kMaxVocab = int64_t(kMaxGroups) * kGroupSize;

FD_DEVICE int lane() { return thread() % kLanes; }
FD_DEVICE int warp() { return thread() / kLanes; }
FD_DEVICE int warps() { return threads() / kLanes; }

struct Mailbox {
  int64_t part[2][kMaxWarps][kSlots];
  int64_t box[2][kMaxRanks][kSlots];
  double chunk[2][kMaxGroups / kLanes];  // for sums in a fixed order
};

// The first `sums` numbers are added, of the others the largest is taken.
template <int sums>
struct SumThenMost {
  FD_MEMBER int64_t operator()(int i, int64_t a, int64_t b) const { return i < sums ? a + b : a > b ? a : b; }
};
using Sum = SumThenMost<kSlots>;
using Most = SumThenMost<0>;

// Where a block's shared memory begins.
FD_DEVICE Mailbox& mail() { return *reinterpret_cast<Mailbox*>(shared_memory()); }

// What a thread knows of these talks; the only state of a row that is not in shared memory.
struct Team {
  int block_turn, cluster_turn;
  bool table_in_use;  // since the last barrier

  template <class Op, int n>
  FD_MEMBER void over_warp(Op op, int64_t (&v)[n]) {
#pragma unroll
    for (int mask = kLanes / 2; mask; mask /= 2)
#pragma unroll
      for (int i = 0; i < n; ++i) v[i] = op(i, v[i], shuffle_xor(v[i], mask));
  }

  template <class Op, int n>
  FD_MEMBER void over_block(Op op, int64_t (&v)[n]) {
    int64_t (*part)[kSlots] = leave_part(op, v);
#pragma unroll
    for (int i = 0; i < n; ++i) v[i] = part[0][i];
    for (int w = 1; w < warps(); ++w)
#pragma unroll
      for (int i = 0; i < n; ++i) v[i] = op(i, v[i], part[w][i]);
  }

  template <class Op, int n>
  FD_MEMBER void over_cluster(Op op, int64_t (&v)[n]) {
    if (ranks() == 1) {
      table_in_use = false;
      return over_block(op, v);
    }
    int64_t (*part)[kSlots] = leave_part(op, v);
    for (int k = thread(); k < kSlots * ranks(); k += threads()) {
      const int i = k % kSlots;
      if (i >= n) continue;
      int64_t mine = part[0][i];
      for (int w = 1; w < warps(); ++w) mine = op(i, mine, part[w][i]);
      of_rank(&mail().box[cluster_turn][rank()][i], k / kSlots)[0] = mine;
    }
    meet();
    int64_t (*box)[kSlots] = mail().box[cluster_turn];
    cluster_turn ^= 1;
#pragma unroll
    for (int k = 0; k < n; ++k) v[k] = box[0][k];
    for (int r = 1; r < ranks(); ++r)
#pragma unroll
      for (int k = 0; k < n; ++k) v[k] = op(k, v[k], box[r][k]);
  }

  // The cluster's barrier.
  FD_MEMBER void meet() {
    sync_cluster();
    table_in_use = false;
  }

  // Before anybody writes into the tables of others, who may still be reading them.
  FD_MEMBER void await_table() {
    if (table_in_use) meet();
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
    int64_t (*part)[kSlots] = mail().part[block_turn];
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
  FD_MEMBER int64_t (*leave_part(Op op, int64_t (&v)[n])) [kSlots] {
    static_assert(n <= kSlots, "");
    over_warp(op, v);
    int64_t (*part)[kSlots] = mail().part[block_turn];
    if (lane() == 0)
#pragma unroll
      for (int i = 0; i < n; ++i) part[warp()][i] = v[i];
    sync_block();
    block_turn ^= 1;
    return part;
  }
};

// ---- numbers

FD_DEVICE float sum_of_8(const float (&v)[8]) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

// The sums of a and b over a warp, in every lane: the first step sends one of them to each half.
FD_DEVICE void sum_in_warp(double* a, double* b) {
  const bool upper = lane() & 16;
  double mine = (upper ? *b : *a) + shuffle_xor(upper ? *a : *b, 16);
#pragma unroll
  for (int mask = 8; mask; mask /= 2) mine += shuffle_xor(mine, mask);
  const double other = shuffle_xor(mine, 16);
  *a = upper ? other : mine, *b = upper ? mine : other;
}

}  // namespace cuda
}  // namespace fastdecode
