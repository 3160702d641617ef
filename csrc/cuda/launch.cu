// Launches: one kernel a call, on the caller's stream; and what is known about the devices. The only file that calls the CUDA runtime.
#include <cuda_runtime.h>

#include <atomic>
#include <stdexcept>

#include "shape.h"
#include "soft.cuh"

namespace fastdecode {
namespace cuda {

__global__ void __launch_bounds__(2 * kThreads)
    truncate_kernel(const __grid_constant__ TruncateArgs args, const __grid_constant__ Launch launch) {
  truncate_row(args, launch);
}

__global__ void __launch_bounds__(2 * kThreads)
    sample_kernel(const __grid_constant__ SampleArgs args, const __grid_constant__ Launch launch) {
  sample_row(args, launch);
}

__global__ void __launch_bounds__(kLanes) soften_kernel(const __grid_constant__ SoftArgs args) { soften_by_warp(args); }

__global__ void __launch_bounds__(kColumns) embed_kernel(const __grid_constant__ EmbedArgs args) {
  embed_by_block(args, blockIdx.y);
}

namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the next call starts afresh
  throw std::runtime_error(std::string("fastdecode's CUDA engine could not ") + what + ": " +
                           cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "read an attribute of the device");
  return value;
}

constexpr int kMaxDevices = 64;

// Has the code that this device runs been compiled with clusters? PTX for an older architecture has not.
int most_ranks() {
  cudaFuncAttributes code;
  check(cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(sample_kernel)), "find code for this device");
  return code.ptxVersion >= 90 ? 8 : 1;  // 8 blocks are what every such device promises
}

// As much shared memory as there is, whatever a row takes; and clusters that only some devices can have, for tests.
void allow(const void* kernel, const Device& device) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(device.shared_bytes)),
        "reserve shared memory");
  if (device.most_ranks > 1)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "ask for a large cluster");
}

// Attributes cost a microsecond or two, so each device, which must be the current one, is asked and told once.
const Device& device_of(int device) {
  static Device known[kMaxDevices];
  static std::atomic<bool> asked[kMaxDevices];
  if (device < 0 || device >= kMaxDevices) throw std::runtime_error("fastdecode's CUDA engine knows devices 0 to 63");
  if (!asked[device].load(std::memory_order_acquire)) {
    Device found;
    found.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
    found.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    found.most_ranks = most_ranks();
    allow(reinterpret_cast<const void*>(sample_kernel), found);
    allow(reinterpret_cast<const void*>(truncate_kernel), found);
    known[device] = found;  // whoever is here at the same time writes the same
    asked[device].store(true, std::memory_order_release);
  }
  return known[device];
}

// The device of a call, for as long as it takes.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "find the current device");
    if (device != before_) check(cudaSetDevice(device), "use the device of the logits"), moved_ = true;
  }
  ~OnDevice() {
    if (moved_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool moved_ = false;
};

template <class Args>
void launch(void (*kernel)(Args, Launch), const Args& args, int64_t seed, int64_t step, const Where& where) {
  const Logits& logits = args.logits;
  if (logits.rows == 0) return;
  if (logits.limit > kMaxVocab) throw std::runtime_error("fastdecode's CUDA engine takes rows of up to 1048576 tokens");
  const OnDevice on(where.device);
  const Device& device = device_of(where.device);
  const Shape shape = shape_of(device, logits, where.ranks);
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {unsigned(shape.ranks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(logits.rows * shape.ranks));
  config.blockDim = dim3(unsigned(shape.threads));
  config.dynamicSmemBytes = size_t(shape.bytes);
  config.stream = static_cast<cudaStream_t>(where.stream);
  config.attrs = &cluster;
  config.numAttrs = shape.ranks > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, args, Launch{seed, step, shape.resident}), "launch its kernel");
}

}  // namespace

void truncate(const TruncateArgs& args, const Where& where) { launch(truncate_kernel, args, 0, 0, where); }

void sample(const SampleArgs& args, int64_t seed, int64_t step, const Where& where) {
  launch(sample_kernel, args, seed, step, where);
}

void soften(const SoftArgs& args, const Where& where) {
  if (args.logits.rows == 0) return;
  if (args.width > kMostCandidates) throw std::runtime_error("fastdecode's CUDA engine mixes up to 1024 candidates");
  const OnDevice on(where.device);
  soften_kernel<<<unsigned(args.logits.rows), kLanes, size_t(room_of(args)), static_cast<cudaStream_t>(where.stream)>>>(
      args);
  check(cudaGetLastError(), "launch its kernel");
}

void embed(const EmbedArgs& args, const Where& where) {
  if (args.rows == 0 || args.columns == 0) return;
  const OnDevice on(where.device);
  const dim3 grid(unsigned(args.rows), unsigned(parts_of(args)));
  embed_kernel<<<grid, kColumns, 0, static_cast<cudaStream_t>(where.stream)>>>(args);
  check(cudaGetLastError(), "launch its kernel");
}

Shape shape_for(const Device& device, const Logits& logits, int ranks) { return shape_of(device, logits, ranks); }

#ifndef FD_CUDA_ARCHS
#define FD_CUDA_ARCHS "unknown"
#endif
std::string built_for() { return FD_CUDA_ARCHS; }

std::vector<std::string> devices() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "find a device");
  std::vector<std::string> found;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, i), "read the properties of a device");
    found.push_back(std::string(properties.name) + ", sm_" + std::to_string(properties.major) +
                    std::to_string(properties.minor) + ", " + std::to_string(properties.multiProcessorCount) +
                    " multiprocessors");
  }
  return found;
}

}  // namespace cuda
}  // namespace fastdecode
