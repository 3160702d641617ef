// How many blocks work on a row: the one place that decides it, for the launcher and for the emulation.
#pragma once

#include <algorithm>

#include "engine.h"
#include "kernel.cuh"

namespace fastdecode {
namespace cuda {

constexpr int kThreads = 256;            // of a block, where two share a multiprocessor; twice as many where one has it alone
constexpr int64_t kReserved = 1 << 10;  // bytes of shared memory that a block costs beside its own

// The smallest cluster, by powers of two, that
// 1. keeps the row in shared memory;
// 2. leaves room for two blocks on a multiprocessor, so that one row is searched while the next comes in from memory;
// 3. gives every multiprocessor something to do, with at least eight groups a block: more talk than that does not pay.
// Where 1 cannot be had, the row is read again from the L2 cache, by as many blocks as 3 allows.
inline Shape shape_of(const Device& device, const Logits& logits, int ranks) {
  auto bytes = [&](int n, bool resident) { return bytes_of_block(logits.limit, logits.dtype, n, resident); };
  auto two_fit = [&](int64_t of_block) { return 2 * (of_block + kReserved) <= device.shared_bytes + kReserved; };
  if (ranks == 0) {
    auto spread = [&](int n) {
      return logits.rows * n >= device.multiprocessors || groups_of(logits.limit) < 2 * n * kChunkGroups;
    };
    ranks = 1;
    while (2 * ranks <= device.most_ranks && !(two_fit(bytes(ranks, true)) && spread(ranks))) ranks *= 2;
    if (bytes(ranks, true) > device.shared_bytes)
      for (ranks = 1; 2 * ranks <= device.most_ranks && !spread(ranks);) ranks *= 2;
  }
  const bool resident = bytes(ranks, true) <= device.shared_bytes;
  const int64_t of_block = bytes(ranks, resident);
  return {ranks, two_fit(of_block) ? kThreads : 2 * kThreads, resident, of_block};
}

}  // namespace cuda
}  // namespace fastdecode
