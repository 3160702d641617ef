// The launcher's twin: csrc/cuda/engine.h by emulation.
#include <stdexcept>

#include "../../csrc/cuda/shape.h"
#include "../../csrc/cuda/soft.cuh"
#include "machine.h"

namespace fastdecode {
namespace cuda {
namespace {

// Devices 0 and 1 serve tests: clusters of any size, with room to keep a row and with none. Device 2 offers what an H100 offers, and
// its blocks have as many threads as there.
enum { kRoomy, kCramped, kReal };

Device device_of(int which) {
  if (which == kReal) return {132, int64_t(227) << 10, 8};
  return {1, which == kRoomy ? int64_t(227) << 10 : 0, kMaxRanks};
}

// No answer depends on it. Most tests run two blocks, whose one warp takes half the time of two; the others are there to see warps.
int few_threads(int ranks) { return ranks == 1 ? 128 : ranks == 2 ? 32 : 64; }

template <class Body>
void launch(const Logits& logits, const Where& where, int64_t seed, int64_t step, Body body) {
  if (logits.rows == 0) return;
  const Device device = device_of(where.device);
  const Shape shape = shape_of(device, logits, where.ranks);
  const int threads = where.device == kReal ? shape.threads : few_threads(shape.ranks);
  const Launch how{seed, step, shape.resident};
  fastdecode::emulated::run({logits.rows, shape.ranks, threads, size_t(shape.bytes)}, [&] { body(how); });
}

}  // namespace

void truncate(const TruncateArgs& args, const Where& where) {
  launch(args.logits, where, 0, 0, [&](const Launch& how) { truncate_row(args, how); });
}

void sample(const SampleArgs& args, int64_t seed, int64_t step, const Where& where) {
  launch(args.logits, where, seed, step, [&](const Launch& how) { sample_row(args, how); });
}

void soften(const SoftArgs& args, const Where&) {
  if (args.width > kMostCandidates) throw std::runtime_error("more candidates than shared memory was asked for");
  if (args.logits.rows == 0) return;
  fastdecode::emulated::run({args.logits.rows, 1, kLanes, size_t(room_of(args))}, [&] { soften_by_warp(args); });
}

void embed(const EmbedArgs& args, const Where&) {
  for (int64_t part = 0; args.rows > 0 && part < parts_of(args); ++part)
    fastdecode::emulated::run({args.rows, 1, kLanes, 0}, [&] { embed_by_block(args, part); });
}

Shape shape_for(const Device& device, const Logits& logits, int ranks) { return shape_of(device, logits, ranks); }
std::string built_for() { return "the emulation"; }
std::vector<std::string> devices() { return {"emulated"}; }

}  // namespace cuda
}  // namespace fastdecode
