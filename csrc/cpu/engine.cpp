// Rows over threads, the instruction set, and the memory that threads work in.
#include "engine.h"

#include <pthread.h>
#if FD_X86
#include <cpuid.h>
#endif

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>

#include "../philox.h"
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

// ---- threads

struct Job {
  void (*run_row)(const void* args, int64_t row) = nullptr;
  const void* args = nullptr;
  int64_t rows = 0;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};

  void work() {
    try {
      for (int64_t row; (row = next.fetch_add(1, std::memory_order_relaxed)) < rows;) run_row(args, row);
    } catch (const std::bad_alloc&) {  // the only thing that can go wrong in a row; the caller throws it on
      failed = true;
      next = rows;
    }
  }
};

// How long a thread looks out for the next job, or a caller for the last row, before it sleeps: waking one takes as long as
// several rows do, and a loop that samples again soon finds its helpers awake.
constexpr auto kLookout = std::chrono::microseconds(50);

// Busily waits until `done()`; false if that takes too long.
template <class Done>
bool spin_until(Done done) {
  const auto end = std::chrono::steady_clock::now() + kLookout;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
#if FD_X86
      __builtin_ia32_pause();
#endif
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

// Threads that wait for a job. One job at a time: a second caller does its rows alone. A thread that comes late finds the job
// gone, and nobody waits for it.
class Pool {
 public:
  void run(Job& job, int helpers) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock() || helpers < 1) return job.work();
    bool wake;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (int(threads_.size()) < helpers) threads_.emplace_back([this, me = threads_.size()] { loop(int(me)); });
      job_ = &job, wanted_ = helpers, wake = asleep_ > 0;
      ticket_.store(ticket_ + 1, std::memory_order_release);
    }
    if (wake) wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // from here on nobody starts on it
    if (busy_ == 0) return;
    lock.unlock();
    const bool done = spin_until([this] { return busy_ == 0; });
    lock.lock();
    if (!done) done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void loop(int me) {
    uint64_t seen = 0;
    for (;;) {
      const bool soon = spin_until([&] { return ticket_.load(std::memory_order_acquire) != seen; });
      std::unique_lock<std::mutex> lock(mutex_);
      if (!soon) {
        ++asleep_;
        wake_.wait(lock, [&] { return ticket_ != seen; });
        --asleep_;
      }
      seen = ticket_;
      if (!job_ || me >= wanted_) continue;
      Job* const job = job_;
      ++busy_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  Job* job_ = nullptr;
  int wanted_ = 0, asleep_ = 0;
  std::atomic<int> busy_{0};  // threads that started on the job and have not finished
  std::atomic<uint64_t> ticket_{0};
};

// Never destroyed: its threads may outlive static destructors. After a fork the child has no threads and needs a new one.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  return *pool.load();
}

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

void over_threads(int64_t n, int threads, void (*run)(const void* args, int64_t i), const void* args) {
  Job job;
  job.args = args, job.rows = n, job.run_row = run;
  const int64_t most = n < threads ? n : threads;
  if (most <= 1)
    job.work();
  else
    the_pool().run(job, int(most) - 1);
  if (job.failed) throw std::bad_alloc();
}

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
