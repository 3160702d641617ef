// What: a row of soft tokens by a warp; and the columns of a row's embedding by a block. The arithmetic is that of csrc/mixture.h.
// Contract: mixture.h, with addresses of the device. An id that has no row in the table makes its row NaN: nobody waits for a GPU here.
// Idea: 1. lanes own candidates, and leave what others need in shared memory; 2. a candidate's place is the number of those before
//   it; 3. neighbouring threads own neighbouring columns.
// Who does what: block i of the grid has row i (embeddings: kColumns columns of it). Shared memory: 3 doubles a candidate.
// Numbers: sums over a warp by shuffles, in an order that the launch does not change. Randomness: mixture.h.
// Cost: one launch, nothing waits. Limits: kMostCandidates; whoever calls keeps to it, and test_soft.py goes there.
#pragma once

#include "../args.h"
#include "../mixture.h"
#include "engine.h"
#include "team.cuh"

namespace fastdecode {
namespace cuda {

static_assert(3 * 8 * kMostCandidates <= 48 << 10, "what every device has");

struct Warp {
  FD_MEMBER int lane() const { return cuda::lane(); }
  FD_MEMBER int lanes() const { return kLanes; }

  FD_MEMBER double most(double x) const {
    for (int mask = kLanes / 2; mask; mask /= 2) {
      const double other = shuffle_xor(x, mask);
      x = other > x ? other : x;
    }
    return x;
  }

  FD_MEMBER double sum(double x) const {
    for (int mask = kLanes / 2; mask; mask /= 2) x += shuffle_xor(x, mask);
    return x;
  }

  // 2.
  template <class Write>
  FD_MEMBER void in_order(const double* key, int64_t n, Write write) const {
    sync_block();  // the block is this warp
    for (int64_t i = lane(); i < n; i += kLanes) {
      int64_t place = 0;
      for (int64_t j = 0; j < n; ++j) place += key[j] > key[i] || (key[j] == key[i] && j < i);
      write(i, place);
    }
  }
};

FD_DEVICE void soften_by_warp(const SoftArgs& args) {
  soften_row(args, row_of_grid(), reinterpret_cast<double*>(shared_memory()), Warp{});
}

constexpr int kColumns = 256;  // of a block

FD_BOTH int64_t room_of(const SoftArgs& args) { return 3 * 8 * args.width; }
FD_BOTH int64_t parts_of(const EmbedArgs& args) { return (args.columns + kColumns - 1) / kColumns; }

// 3.
FD_DEVICE void embed_by_block(const EmbedArgs& args, int64_t part) {
  const int64_t r = row_of_grid();
  const int64_t* const ids = args.ids + r * args.width;
  const float* const weights = args.weights + r * args.width;
  const bool alone = ids[0] >= 0 && is_alone(weights, args.width);
  for (int64_t c = part * kColumns + thread(); c < (part + 1) * kColumns && c < args.columns; c += threads()) {
    float sum = 0;
    for (int64_t m = 0; m < (alone ? 1 : args.width); ++m) {
      if (ids[m] < 0) {
        sum += weights[m];
        continue;
      }
      const float e = ids[m] < args.vocab ? load_as_float(args.table, args.dtype, ids[m] * args.row_stride + c) : NAN;
      // The first product replaces a sum of 0, which would turn -0 into 0.
      sum = m == 0 ? weights[m] * e : sum + weights[m] * e;
    }
    store_from_float(args.out, args.dtype, r * args.columns + c, sum);
  }
}

}  // namespace cuda
}  // namespace fastdecode
