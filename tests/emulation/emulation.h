// The host twin of csrc/cuda/platform.cuh: the CUDA engine's real source runs on the CPU, every thread of a cluster a fiber.
//
// Barriers of a warp, a block and a cluster really wait; one that not all threads reach, or that they reach at different lines, is
// reported and never hangs. Shared memory is a piece of heap for each block, filled with garbage; between its arrays lie gaps that
// nobody may write (AddressSanitizer watches them too). Warps and lanes run in an order that changes with every launch, so that
// what is right by luck of the order does not stay right. machine.cpp has the scheduler.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#define FD_DEVICE static inline __attribute__((unused))
#define FD_MEMBER inline
#define FD_CALLED static __attribute__((noinline, unused))
#define FD_DECLARED static
#define FD_BOTH inline __attribute__((always_inline))

namespace fastdecode {
namespace cuda {

constexpr int kGap = 32;

namespace emulated {

struct Here {  // what the running thread sees of the machine
  int thread, threads, rank, ranks;
  int64_t row;
  char* shared;         // of its block
  char* const* blocks;  // the shared memory of every block of the cluster
  size_t shared_bytes;
};
extern Here here;

enum Scope { kWarp, kBlock, kCluster, kBar };

// With FD_COUNTED: what the first block of each cluster did, a warp's instruction once. bench/gpu/model reads them.
enum Count { kWarpWaits, kBlockBarriers, kClusterBarriers, kMemoryChunks, kSharedChunks, kAtomics, kRemotes, kCounts };
void count(Count what);         // by every thread
void count_in_warp(Count what);  // by every thread of a warp together
bool in_shared(const void* place);
void wait(Scope scope, int line);
uint64_t* slots(int line);      // a slot for each lane of the warp, after a barrier free to write again
void await(uint64_t* bar, int parity, int line);
void init_bar(uint64_t* bar, int arrivals);
void promise(uint64_t* bar, int r, int bytes);
void post(char* place, int r, const void* what, size_t bytes, uint64_t* bar);
void arrive_at_cluster();
void watch(char* gap, size_t bytes);
void look_for(int rank);  // a block must have started, and may not have ended
[[noreturn]] void stop(const char* why);

// All lanes leave a value, and see those of the others.
template <class T>
struct Exchange {
  const uint64_t* of_lane;
  explicit Exchange(T mine, int line) {
    static_assert(sizeof(T) <= 8, "");
    uint64_t bits = 0;
    memcpy(&bits, &mine, sizeof(T));
    uint64_t* const all = slots(line);
    all[here.thread % 32] = bits;
    of_lane = all;
    wait(kWarp, line);
  }
  T of(int lane) const {
    if (lane < 0 || lane >= 32) stop("a shuffle from a lane that does not exist");
    T x;
    memcpy(&x, of_lane + lane, sizeof(T));
    return x;
  }
};

}  // namespace emulated

inline int thread() { return emulated::here.thread; }
inline int threads() { return emulated::here.threads; }
inline int rank() { return emulated::here.rank; }
inline int ranks() { return emulated::here.ranks; }
inline int64_t row_of_grid() { return emulated::here.row; }

inline void sync_block(int line = __builtin_LINE()) { emulated::wait(emulated::kBlock, line); }
inline void sync_warp(int line = __builtin_LINE()) { emulated::wait(emulated::kWarp, line); }

template <class T>
T shuffle(T x, int from, int line = __builtin_LINE()) {
  return emulated::Exchange<T>(x, line).of(from);
}

template <class T>
T shuffle_xor(T x, int mask, int line = __builtin_LINE()) {
  return emulated::Exchange<T>(x, line).of(emulated::here.thread % 32 ^ mask);
}

inline uint32_t ballot(bool yes, int line = __builtin_LINE()) {
  const emulated::Exchange<uint32_t> all(yes, line);
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= all.of(lane) << lane;
  return bits;
}

inline uint32_t max_in_warp(uint32_t x, int line = __builtin_LINE()) {
  const emulated::Exchange<uint32_t> all(x, line);
  for (int lane = 0; lane < 32; ++lane) x = all.of(lane) > x ? all.of(lane) : x;
  return x;
}

inline uint32_t sum_in_warp(uint32_t x, int line = __builtin_LINE()) {
  const emulated::Exchange<uint32_t> all(x, line);
  uint32_t sum = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (sum + all.of(lane) < sum) emulated::stop("a sum over a warp is more than 32 bits hold");
    sum += all.of(lane);
  }
  return sum;
}

inline int bits_in(uint32_t x) { return __builtin_popcount(x); }

template <class T>
T add_to(T* shared, T x) {
  emulated::count(emulated::kAtomics);
  const T before = *shared;
  *shared = before + x;
  return before;
}

inline float exp2_of(float y) { return y < -126 ? 0.0f : exp2f(y); }
inline float half_of(uint16_t h) { return from_f16(h); }

inline uint32_t funnel(uint32_t low, uint32_t high, int shift) {
  return uint32_t((uint64_t(high) << 32 | low) >> shift);
}

struct alignas(16) Chunk {
  uint32_t w[4];
};

inline Chunk load_chunk(const void* aligned) {
  if (reinterpret_cast<uintptr_t>(aligned) % 16)
    emulated::stop("a load of 16 bytes from an address that is not aligned");
  emulated::count_in_warp(emulated::in_shared(aligned) ? emulated::kSharedChunks : emulated::kMemoryChunks);
  return *static_cast<const Chunk*>(aligned);
}

inline void store_chunk(void* aligned, Chunk c) {
  if (reinterpret_cast<uintptr_t>(aligned) % 16)
    emulated::stop("a store of 16 bytes to an address that is not aligned");
  *static_cast<Chunk*>(aligned) = c;
}

struct alignas(8) Half {
  uint32_t w[2];
};

inline Half load_half(const void* aligned) {
  if (reinterpret_cast<uintptr_t>(aligned) % 8)
    emulated::stop("a load of 8 bytes from an address that is not aligned");
  emulated::count_in_warp(emulated::in_shared(aligned) ? emulated::kSharedChunks : emulated::kMemoryChunks);
  return *static_cast<const Half*>(aligned);
}

inline void store_half(void* aligned, Half h) {
  if (reinterpret_cast<uintptr_t>(aligned) % 8)
    emulated::stop("a store of 8 bytes to an address that is not aligned");
  *static_cast<Half*>(aligned) = h;
}

// What is posted or copied arrives at once or as late as it may, when somebody has waited for it: both happen.
struct alignas(8) Bar {
  uint64_t word;
};

constexpr bool kHasBars = true;
inline void init_bar(Bar* bar, int arrivals) { emulated::init_bar(&bar->word, arrivals); }
inline void publish_bars() {}
inline void arrive_at_cluster() { emulated::arrive_at_cluster(); }
inline void wait_for_cluster(int line = __builtin_LINE()) { emulated::wait(emulated::kCluster, line); }
inline void promise(Bar* bar, int r, int bytes) { emulated::promise(&bar->word, r, bytes); }
inline void post(void* place, int r, Chunk c, Bar* bar) {
  emulated::post(static_cast<char*>(place), r, &c, sizeof c, &bar->word);
}
inline void await(Bar* bar, int parity, int line = __builtin_LINE()) { emulated::await(&bar->word, parity, line); }
inline void copy_in(void* shared, const void* global, int bytes, Bar* bar) {
  if (reinterpret_cast<uintptr_t>(global) % 16 || bytes % 16)
    emulated::stop("a copy of what is not aligned to 16 bytes");
  emulated::post(static_cast<char*>(shared), emulated::here.rank, global, size_t(bytes), &bar->word);
}

inline char* shared_memory() { return emulated::here.shared; }

inline void guard(void* gap, int64_t bytes) {
  if (emulated::here.shared) emulated::watch(static_cast<char*>(gap), size_t(bytes));
}

}  // namespace cuda
}  // namespace fastdecode
