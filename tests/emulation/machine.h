// The emulated machine: runs clusters of blocks one after the other, and says what went wrong.
#pragma once

#include <stdint.h>

#include <functional>

namespace fastdecode {
namespace emulated {

struct Grid {
  int64_t rows;
  int ranks, threads;
  size_t shared_bytes;
};

// Calls `kernel` in every thread. Throws std::runtime_error if a barrier is not reached by all, or shared memory is written
// where there is none.
void run(const Grid& grid, const std::function<void()>& kernel);

}  // namespace emulated
}  // namespace fastdecode
