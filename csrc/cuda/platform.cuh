// What: every hardware intrinsic of the CUDA engine, one small function each; no other file of it names one.
// Contract: the host twin of this file is tests/emulation/emulation.h, found by the include path of that build: the same names,
//   one fiber for each thread. All threads of a warp call the warp's functions together, all of a block the block's.
// Idea: a row belongs to a cluster of `ranks()` blocks; without clusters (before sm_90) that is one block, and everything that
//   speaks of other blocks comes to nothing.
// Who does what: see team.cuh. Numbers: exp2_of is within 2 ulp. Randomness, cost: none. Limits: sm_80 and up.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../args.h"
#include "../dtype.h"
#include "../philox.h"

#if !defined(__CUDACC__)
#include "emulation.h"
#else

#define FD_DEVICE static __device__ __forceinline__
#define FD_MEMBER __device__ __forceinline__
#define FD_CALLED static __device__ __noinline__
#define FD_DECLARED static __device__
#define FD_BOTH __host__ __device__ __forceinline__

namespace fastdecode {
namespace cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kGap = 0;  // bytes between arrays in shared memory, where the twin keeps watch

FD_DEVICE int thread() { return int(threadIdx.x); }
FD_DEVICE int threads() { return int(blockDim.x); }

FD_DEVICE int rank() {
#if __CUDA_ARCH__ >= 900
  unsigned r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return int(r);
#else
  return 0;
#endif
}

FD_DEVICE int ranks() {
#if __CUDA_ARCH__ >= 900
  unsigned n;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
  return int(n);
#else
  return 1;
#endif
}

FD_DEVICE int64_t row_of_grid() { return int64_t(blockIdx.x) / ranks(); }

FD_DEVICE void sync_block() { __syncthreads(); }
FD_DEVICE int count_in_block(bool yes) { return __syncthreads_count(yes); }

FD_DEVICE void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  if (ranks() > 1) {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
    return;
  }
#endif
  __syncthreads();
}

// The same place in the shared memory of another block of the cluster.
template <class T>
FD_DEVICE T* of_rank(T* place, int r) {
#if __CUDA_ARCH__ >= 900
  uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(reinterpret_cast<uint64_t>(place)), "r"(r));
  return reinterpret_cast<T*>(there);
#else
  return place;
#endif
}

template <class T>
FD_DEVICE T shuffle(T x, int from) {
  return __shfl_sync(kAllLanes, x, from);
}

template <class T>
FD_DEVICE T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(kAllLanes, x, mask);
}

FD_DEVICE uint32_t ballot(bool yes) { return __ballot_sync(kAllLanes, yes); }
FD_DEVICE uint32_t most_in_warp(uint32_t x) { return __reduce_max_sync(kAllLanes, x); }
FD_DEVICE uint32_t sum_in_warp(uint32_t x) { return __reduce_add_sync(kAllLanes, x); }
FD_DEVICE int bits_in(uint32_t x) { return __popc(x); }

template <class T>
FD_DEVICE T add_to(T* shared, T x) {
  return atomicAdd(shared, x);
}

FD_DEVICE float exp2_of(float y) {
  float w;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(w) : "f"(y));
  return w;
}

FD_DEVICE float half_of(uint16_t h) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
  return x;
}

// 32 bits of low | high << 32, from bit `shift` (0 .. 31) on.
FD_DEVICE uint32_t funnel(uint32_t low, uint32_t high, int shift) { return __funnelshift_r(low, high, shift); }

struct alignas(16) Chunk {
  uint32_t w[4];
};

FD_DEVICE Chunk load_chunk(const void* aligned) {
  const uint4 v = *static_cast<const uint4*>(aligned);
  return {{v.x, v.y, v.z, v.w}};
}

FD_DEVICE void store_chunk(void* aligned, Chunk c) {
  *static_cast<uint4*>(aligned) = make_uint4(c.w[0], c.w[1], c.w[2], c.w[3]);
}

FD_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char of_block[];
  return of_block;
}

FD_BOTH void guard(void*, int64_t) {}

}  // namespace cuda
}  // namespace fastdecode
#endif
