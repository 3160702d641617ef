// The launcher's twin: csrc/cuda/engine.h by emulation.
#include <stdexcept>

#include "../../csrc/cuda/shape.h"
#include "../../csrc/cuda/soft.cuh"
#include "machine.h"

namespace fastdecode {
namespace cuda {
namespace {

template <class Body>
void launch(const Logits& logits, const Where& where, int64_t seed, int64_t step, Body body) {
  if (logits.rows == 0) return;
  Device device;
  device.shared_bytes = where.device == 0 ? int64_t(227) << 10 : 0;  // device 1 has none to keep a row in
  device.most_ranks = kMaxRanks;
  const Shape shape = shape_of(device, logits, where.ranks);
#if FD_COUNTED  // as a device would be asked
  const int threads = shape.threads;
#else
  // No answer depends on it. Most tests run two blocks, whose one warp takes half the time of two; the others are there to see warps.
  const int threads = shape.ranks == 1 ? 128 : shape.ranks == 2 ? 32 : 64;
#endif
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
