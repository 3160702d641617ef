// What: the threads of one row: a cluster of blocks, and the few things they tell each other.
// Contract: every function is called by all threads of the block together, and answers the same to all of the cluster; what is said of
//   the warp, by all threads of a warp.
// Idea: nothing may depend on how many blocks and warps a launch has: integers are added in any order, doubles in one order that
//   only the tokens' ids decide. That is what makes a row's token independent of its batch and of the launch.
//   Blocks talk in rounds. In a round each block promises every block so many bytes, posts them, and waits for all that was
//   promised to it. What is posted lies twice, for rounds in turns: a block that is a round ahead does not overwrite what a slow one
//   still reads, because it is ahead only after the slow one has posted, and that one has passed a block barrier before.
// Who does what: lanes add up by shuffles, warps through `part`, blocks by posting into each other's `box`.
// Numbers: counts and keys as 64-bit integers, masses and moments as doubles. Randomness: none.
// Cost: one block barrier, or one block barrier and one round. Limits: 16 blocks, a power of two; 512 threads, 8 numbers a call.
#pragma once

#include "../order.h"
#include "platform.cuh"

namespace fastdecode {
namespace cuda {

constexpr int kLanes = 32, kMaxWarps = 16, kMaxRanks = 16, kSlots = 8;
constexpr double kLn2 = 0.693147180559945309417;
constexpr float kLowest = -3.402823466e38f;  // the smallest finite logit: -inf never survives
constexpr int kMaxGroups = 4096;
constexpr int64_t kMaxVocab = int64_t(kMaxGroups) * kGroupSize;

FD_DEVICE int lane() { return thread() % kLanes; }
FD_DEVICE int warp() { return thread() / kLanes; }
FD_DEVICE int warps() { return threads() / kLanes; }

struct Mailbox {
  Bar bars[2];
  int64_t part[2][kMaxWarps][kSlots];
  int64_t box[2][kMaxRanks][kSlots];
  int counts[kMaxRanks];  // of each block's tokens that come letter by letter
  int turns[kMaxWarps];   // what each warp knows: twice the rounds so far, and the turn of `part`
};

// The numbers whose bits are in `sums` are added, of the others the largest is taken.
template <uint32_t sums>
struct Mixed {
  FD_MEMBER int64_t operator()(int i, int64_t a, int64_t b) const { return sums >> i & 1 ? a + b : a > b ? a : b; }
};
template <int sums>
using SumThenMax = Mixed<(1u << sums) - 1>;
using Sum = SumThenMax<kSlots>;
using Max = SumThenMax<0>;

// Where a block's shared memory begins.
FD_DEVICE Mailbox& mail() { return *reinterpret_cast<Mailbox*>(shared_memory()); }

FD_DEVICE Chunk chunk_of(int64_t a, int64_t b) {
  return {{uint32_t(a), uint32_t(uint64_t(a) >> 32), uint32_t(b), uint32_t(uint64_t(b) >> 32)}};
}

// The talks. What a warp knows of them lies in shared memory: as variables of each thread they would be local memory, because the
// functions below are called and not inlined.
struct Team {
  FD_MEMBER int turns() const { return mail().turns[warp()]; }
  FD_MEMBER int round() const { return turns() >> 1; }
  FD_MEMBER int turn() const { return round() & 1; }

  // All lanes have read what was.
  FD_MEMBER void set_turns(int turns) const {
    sync_warp();
    if (lane() == 0) mail().turns[warp()] = turns;
    sync_warp();
  }

  // Where this block's warps leave what they have, until the next call.
  FD_MEMBER int64_t (*parts() const)[kSlots] { return mail().part[turns() & 1]; }

  // All warps have left it, and a second barrier from now it may be written again.
  FD_MEMBER void parts_are_left() const {
    const int now = turns();
    sync_block();
    set_turns(now ^ 1);
  }

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
    if (ranks() == 1) return over_block(op, v);
    int64_t (*part)[kSlots] = leave_part(op, v);
    promise_all((n + 1) / 2);
    post_numbers<n>(op, part);
    receive();
    fold(op, v);
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
    int64_t (*part)[kSlots] = parts();
    if (lane() == kLanes - 1)
#pragma unroll
      for (int i = 0; i < n; ++i) part[warp()][i] = up[i];
    parts_are_left();
#pragma unroll
    for (int i = 0; i < n; ++i) v[i] = up[i] - mine[i];
    for (int w = 0; w < warp(); ++w)
#pragma unroll
      for (int i = 0; i < n; ++i) v[i] += part[w][i];
  }

  // ---- a round, in parts: leave_part; promise_all; post...; receive; fold.

  // What the warps have is in shared memory, and so is all that any thread wrote there before.
  template <class Op, int n>
  FD_MEMBER int64_t (*leave_part(Op op, int64_t (&v)[n])) [kSlots] {
    static_assert(n <= kSlots, "");
    over_warp(op, v);
    int64_t (*part)[kSlots] = parts();
    if (lane() == 0)
#pragma unroll
      for (int i = 0; i < n; ++i) part[warp()][i] = v[i];
    parts_are_left();
    return part;
  }

  FD_MEMBER Bar* bar() const { return mail().bars + turn(); }

  // So many chunks of 16 bytes will be posted to every block of the cluster.
  FD_MEMBER void promise_all(int chunks) {
    if (ranks() == 1) return;
    if (thread() < ranks()) promise(bar(), thread(), 16 * chunks);
  }

  // chunk(i) to the place place(i) in every block, for i in [0, n).
  template <class Place, class What>
  FD_MEMBER void post_all(int n, Place place, What chunk) {
    const int bits = bits_in(uint32_t(ranks() - 1));
    for (int k = thread(); k < n << bits; k += threads()) {
      const int i = k >> bits;
      post_one(place(i), k & (ranks() - 1), chunk(i));
    }
  }

  FD_MEMBER void post_one(void* place, int r, Chunk chunk) {
    if (ranks() == 1)
      store_chunk(place, chunk);
    else
      post(place, r, chunk, bar());
  }

  template <int n, class Op>
  FD_MEMBER void post_numbers(Op op, int64_t (*part)[kSlots]) {
    int64_t (*box)[kSlots] = mail().box[turn()];
    const int here = rank();
    const auto all_of = [&](int i) {
      if (i >= n) return int64_t(0);  // the other half of the last chunk
      int64_t all = part[0][i];
      for (int w = 1; w < warps(); ++w) all = op(i, all, part[w][i]);
      return all;
    };
    post_all((n + 1) / 2, [&](int i) { return &box[here][2 * i]; },
             [&](int i) { return chunk_of(all_of(2 * i), all_of(2 * i + 1)); });
  }

  FD_MEMBER void receive() {
    const int now = turns();
    if (ranks() == 1)
      sync_block();
    else
      await(mail().bars + (now >> 1 & 1), now >> 2 & 1);
    set_turns(now + 2);
  }

  // The numbers of the round that was received last.
  template <class Op, int n>
  FD_MEMBER void fold(Op op, int64_t (&v)[n]) {
    int64_t (*box)[kSlots] = mail().box[turn() ^ 1];
#pragma unroll
    for (int k = 0; k < n; ++k) v[k] = box[0][k];
    for (int r = 1; r < ranks(); ++r)
#pragma unroll
      for (int k = 0; k < n; ++k) v[k] = op(k, v[k], box[r][k]);
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

// Of 8 numbers of each lane the sums over the warp: lane l has that of number l / 4. Each step halves what a lane still has.
FD_DEVICE double sum_8_in_warp(double (&v)[8]) {
#pragma unroll
  for (int half = 4, mask = 16; half; half /= 2, mask /= 2) {
    const bool upper = lane() & mask;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < half) {
        const double give = upper ? v[i] : v[i + half], keep = upper ? v[i + half] : v[i];
        v[i] = keep + shuffle_xor(give, mask);
      }
  }
  v[0] += shuffle_xor(v[0], 2);
  return v[0] + shuffle_xor(v[0], 1);
}

}  // namespace cuda
}  // namespace fastdecode
