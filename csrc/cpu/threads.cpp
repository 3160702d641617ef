// A pool of threads, made when it is first needed, and jobs of many like pieces.
#include "threads.h"

#include <pthread.h>
#include <stdint.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace fastdecode {
namespace {

struct Job {
  void (*run_row)(const void* args, int64_t row) = nullptr;
  const void* args = nullptr;
  int64_t rows = 0;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};

  void work() {
    try {
      for (int64_t row; (row = next.fetch_add(1, std::memory_order_relaxed)) < rows;) run_row(args, row);
    } catch (const std::bad_alloc&) {  // a row can throw nothing else; over_threads throws it again
      failed = true;
      next = rows;
    }
  }
};

// How long a thread spins for the next job, or a caller for the last row, before it sleeps. Waking a thread takes as long as
// several rows do, and a loop that samples again soon finds its helpers awake.
constexpr auto kSpin = std::chrono::microseconds(50);

// Busily waits until `done()`; false if that takes too long.
template <class Done>
bool spin_until(Done done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
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
// gone, and run() does not wait for it.
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
    job_ = nullptr;  // from here on no thread starts on it
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

}  // namespace

void over_threads(int64_t n, int threads, void (*run)(const void* args, int64_t i), const void* args) {
  Job job;
  job.args = args, job.rows = n, job.run_row = run;
  const int64_t workers = n < threads ? n : threads;
  if (workers <= 1)
    job.work();
  else
    the_pool().run(job, int(workers) - 1);
  if (job.failed) throw std::bad_alloc();
}

}  // namespace fastdecode
