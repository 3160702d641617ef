// The public functions of the CPU engine: the instruction set, the memory that threads work in, rows over threads.
#include "engine.h"

#if FD_X86
#include <cpuid.h>
#endif
#include <stdint.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "../args.h"
#include "../philox.h"
#include "soft.h"
#include "target.h"
#include "threads.h"
#include "workspace.h"

namespace fastdecode {
namespace {

// ---- the instruction set

const Target* const* runnable(int* count) {
  static const Target* found[3];
  static int n = [] {
    int filled = 0;
    found[filled++] = &kBaselineTarget;
#if FD_X86
    __builtin_cpu_init();
    unsigned a, b, features, d;  // clang 14 does not know "f16c"
    const bool f16c = __get_cpuid(1, &a, &b, &features, &d) && (features & bit_F16C);
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
    if (avx2) found[filled++] = &kAvx2Target;
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      found[filled++] = &kAvx512Target;
#endif
    return filled;
  }();
  *count = n;
  return found;
}

std::atomic<const Target*> in_use{nullptr};

const Target* current() {
  const Target* target = in_use.load(std::memory_order_relaxed);
  if (target) return target;
  int n;
  const Target* const* found = runnable(&n);
  return found[n - 1];
}

// ---- memory: one block for each thread, freed with the thread

struct OwnedWorkspace : Workspace {
  void* block = nullptr;

  ~OwnedWorkspace() { std::free(block); }

  const Workspace& for_row(int64_t limit) {
    if (limit > vocab || !block) grow(limit);
    return *this;
  }

 private:
  // Laid out twice: once to count the bytes, once to hand them out.
  void grow(int64_t limit) {
    const int64_t tokens = limit + kSlop, all_groups = (limit + kGroupSize - 1) / kGroupSize;
    char* base = nullptr;
    size_t used = 0;
    auto place = [&](auto*& array, int64_t n) {
      using Element = typename std::remove_reference<decltype(*array)>::type;
      if (base) array = reinterpret_cast<Element*>(base + used);
      used += (size_t(n) * sizeof(Element) + 63) / 64 * 64;
    };
    auto lay_out = [&] {
      used = 0;
      place(group_max, all_groups + kSlop), place(group_mass, all_groups + kSlop),
          place(group_noise, all_groups + kSlop);
      place(run_group, all_groups + kSlop), place(run_start, all_groups + kSlop), place(run_mass, all_groups + kSlop);
      place(x, tokens), place(id, tokens), place(y, tokens), place(w, tokens);
      place(key, tokens), place(key_w, tokens), place(key_y, tokens), place(row, tokens);
    };
    lay_out();
    std::free(block);
    block = nullptr, vocab = 0;
    base = static_cast<char*>(std::aligned_alloc(64, used));
    if (!base) throw std::bad_alloc();
    block = base;
    lay_out();
    vocab = limit, groups = all_groups;
  }
};

thread_local OwnedWorkspace workspace;

// ---- rows

template <class Args, void (*Target::*verb)(const Args&, int64_t, const Workspace&)>
void run_rows(const Args& args, int threads) {
  struct Call {
    const Args* args;
    const Target* target;
  } call{&args, current()};
  over_threads(
      args.logits.rows, threads,
      [](const void* opaque, int64_t row) {
        const Call& call = *static_cast<const Call*>(opaque);
        (call.target->*verb)(*call.args, row, workspace.for_row(call.args->logits.limit));
      },
      &call);
}

}  // namespace

void truncate(const TruncateArgs& args, int threads) { run_rows<TruncateArgs, &Target::truncate_row>(args, threads); }
void sample(const SampleArgs& args, int threads) { run_rows<SampleArgs, &Target::sample_row>(args, threads); }

double exponential(uint64_t seed, uint64_t step, uint64_t stream, int64_t index) {
  return current()->exponential({seed, step, stream}, index);
}

void embed(const EmbedArgs& args, int threads) { embed_by(*current(), args, threads); }

float read_once(const float* x, int64_t n) { return current()->read_once(x, n); }
float exp_pass(const float* x, int64_t n) { return current()->exp_pass(x, n); }

std::vector<std::string> targets() {
  int n;
  const Target* const* found = runnable(&n);
  std::vector<std::string> names;
  for (int i = 0; i < n; ++i) names.push_back(found[i]->name);
  return names;
}

std::string target() { return current()->name; }

bool use_target(const std::string& name) {
  int n;
  const Target* const* found = runnable(&n);
  for (int i = 0; i < n; ++i)
    if (name == found[i]->name) return in_use = found[i], true;
  return false;
}

}  // namespace fastdecode
