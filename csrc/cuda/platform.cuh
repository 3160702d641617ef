// What: every hardware intrinsic of the CUDA engine, one small function each; no other file of it names one.
// Contract: the host twin of this file is tests/emulation/emulation.h, found by the include path of that build: the same names,
//   one fiber for each thread. All threads of a warp call the warp's functions together, all of a block the block's.
// Idea: a row belongs to a cluster of `ranks()` blocks; without clusters (before sm_90) that is one block, and everything that
//   speaks of other blocks comes to nothing. Blocks never read each other's memory: they post 16 bytes at a time into it
//   (st.async), and the receiver waits until all that it was promised has arrived (an mbarrier counts bytes and senders). So no
//   thread ever fences for the whole device: what `barrier.cluster.arrive.release` costs in every thread.
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

FD_DEVICE int64_t row_of_grid() { return int64_t(blockIdx.x / unsigned(ranks())); }

FD_DEVICE void sync_block() { __syncthreads(); }
FD_DEVICE void sync_warp() { __syncwarp(); }

template <class T>
FD_DEVICE T shuffle(T x, int from) {
  return __shfl_sync(kAllLanes, x, from);
}

template <class T>
FD_DEVICE T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(kAllLanes, x, mask);
}

FD_DEVICE uint32_t ballot(bool yes) { return __ballot_sync(kAllLanes, yes); }
FD_DEVICE uint32_t max_in_warp(uint32_t x) { return __reduce_max_sync(kAllLanes, x); }
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

struct alignas(8) Half {
  uint32_t w[2];
};

FD_DEVICE Half load_half(const void* aligned) {
  const uint2 v = *static_cast<const uint2*>(aligned);
  return {{v.x, v.y}};
}

FD_DEVICE void store_half(void* aligned, Half h) { *static_cast<uint2*>(aligned) = make_uint2(h.w[0], h.w[1]); }

FD_DEVICE void store_chunk(void* aligned, Chunk c) {
  *static_cast<uint4*>(aligned) = make_uint4(c.w[0], c.w[1], c.w[2], c.w[3]);
}

FD_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char of_block[];
  return of_block;
}

FD_BOTH void guard(void*, int64_t) {}

// ---- between blocks, and from memory without a register (sm_90)

// An mbarrier. Its phases are counted from 0; a phase ends when all arrivals have come, and all bytes that they promised.
struct alignas(8) Bar {
  uint64_t word;
};

#if __CUDA_ARCH__ >= 900
constexpr bool kHasBars = true;

FD_DEVICE uint32_t address_of(const void* shared) { return uint32_t(__cvta_generic_to_shared(shared)); }

FD_DEVICE uint32_t address_in(const void* shared, int r) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address_of(shared)), "r"(r));
  return there;
}

FD_DEVICE void init_bar(Bar* bar, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_of(bar)), "r"(arrivals) : "memory");
}

// After init_bar, by the thread that called it: other blocks and copies see the barrier.
FD_DEVICE void publish_bars() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Together: all blocks of the cluster have started, and their barriers are there. Publishes nothing else.
FD_DEVICE void arrive_at_cluster() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
FD_DEVICE void wait_for_cluster() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

// One arrival at a barrier of block r, which promises so many bytes. What is posted orders itself: the promise may be relaxed.
FD_DEVICE void promise(Bar* bar, int r, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.relaxed.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(address_in(bar, r)),
               "r"(bytes)
               : "memory");
}

// 16 bytes into the memory of block r, at the same place as here, and counted by its barrier.
FD_DEVICE void post(void* place, int r, Chunk c, Bar* bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   address_in(place, r)),
               "r"(c.w[0]), "r"(c.w[1]), "r"(c.w[2]), "r"(c.w[3]), "r"(address_in(bar, r))
               : "memory");
}

// Until the phase of this parity has ended.
FD_DEVICE void await(Bar* bar, int parity) {
  uint32_t done;
  do
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(address_of(bar)), "r"(parity)
        : "memory");
  while (!done);
}

// A copy from global memory that no register and no thread waits for. All aligned to 16 bytes; by one thread, which promised.
FD_DEVICE void copy_in(void* shared, const void* global, int bytes, Bar* bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   address_of(shared)),
               "l"(global), "r"(bytes), "r"(address_of(bar))
               : "memory");
}
#else
constexpr bool kHasBars = false;  // nothing below is called
FD_DEVICE void init_bar(Bar*, int) {}
FD_DEVICE void publish_bars() {}
FD_DEVICE void arrive_at_cluster() {}
FD_DEVICE void wait_for_cluster() {}
FD_DEVICE void promise(Bar*, int, int) {}
FD_DEVICE void post(void*, int, Chunk, Bar*) {}
FD_DEVICE void await(Bar*, int) {}
FD_DEVICE void copy_in(void*, const void*, int, Bar*) {}
#endif

}  // namespace cuda
}  // namespace fastdecode
#endif
