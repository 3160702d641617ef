// The CUDA engine as the binding sees it: rows over clusters of blocks, on a stream of a device. No CUDA header is needed here.
#pragma once

#include <string>
#include <vector>

#include "../args.h"

namespace fastdecode {
namespace cuda {

// Where and how a call runs. `ranks` is the number of blocks for each row, 0: as many as `shape_for` thinks good.
struct Where {
  int device = 0;
  void* stream = nullptr;
  int ranks = 0;
};

// Seed and step are numbers where the arguments hold no address. Both enqueue one kernel and return; nothing is allocated, nothing
// waits. They throw std::runtime_error with the text of the CUDA error.
void truncate(const TruncateArgs& args, const Where& where);
void sample(const SampleArgs& args, int64_t seed, int64_t step, const Where& where);

// Likewise, with up to kMostCandidates candidates a row. An id beyond the table makes the row's embedding NaN.
constexpr int kMostCandidates = 1024;
void soften(const SoftArgs& args, const Where& where);
void embed(const EmbedArgs& args, const Where& where);

// What a device offers to one row.
struct Device {
  int multiprocessors = 1;
  int64_t shared_bytes = 48 << 10;  // the most one block can have
  int most_ranks = 1;               // blocks of a cluster; 1: no clusters
};

// How a row is cut up: blocks for each row, threads of a block, and whether the row stays in shared memory.
struct Shape {
  int ranks, threads;
  bool resident;
  int64_t bytes;  // of shared memory, for each block
};

Shape shape_for(const Device& device, const Logits& logits, int ranks);

std::string built_for();             // the architectures, as nvcc was told
std::vector<std::string> devices();  // the devices that are there, a line each; throws if there is no driver

}  // namespace cuda
}  // namespace fastdecode
