// The scheduler: a warp runs until its lanes wait for others, a block's or a cluster's barrier opens when all are there.
#include "machine.h"

#include <stdlib.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/dtype.h"
#include "bars.h"
#include "emulation.h"
#include "fiber.h"

namespace fastdecode {
namespace cuda {
namespace emulated {

using fastdecode::emulated::Context;
using fastdecode::emulated::Stack;

Here here;

namespace {

enum State { kReady, kWaiting, kDone };

struct Fiber {
  Context context;
  State state;
  Scope scope;  // what it waits for,
  int line;     // and where
  Here here;
  int turn;      // of the warp's slots
  bool arrived;  // at the cluster's barrier
  uint64_t* bar;  // that it waits for,
  int parity;     // and of which phase
};

struct Warp {
  Fiber* lanes;
  uint64_t slots[2][32];
};

struct Block {
  bool started;
  std::vector<Warp> warps;
  char* shared;
  std::vector<std::pair<char*, size_t>> gaps;
};

struct Machine {
  fastdecode::emulated::Grid grid;
  const std::function<void()>* kernel;
  std::vector<std::unique_ptr<Stack>> stacks;
  std::vector<Fiber> fibers;
  std::vector<Block> blocks;
  std::vector<char*> shared;
  std::map<uint64_t*, BarState> bars;
  Context scheduler;
  Fiber* running = nullptr;
  Fiber* last =
      nullptr;   // of the lanes that are run now, which go on to each other without the scheduler: the last one,
  int step = 1;  // and the way there
  std::string error;
  uint64_t dice = 88172645463325252ull;
} machine;

uint64_t roll() {
  machine.dice ^= machine.dice << 13, machine.dice ^= machine.dice >> 7, machine.dice ^= machine.dice << 17;
  return machine.dice;
}

const char* const kNames[] = {"warp", "block", "cluster"};

std::string place_of(const Fiber& f) {
  const std::string who = "thread " + std::to_string(f.here.thread) + " of block " + std::to_string(f.here.rank);
  if (f.state == kDone) return who + " has ended";
  if (f.scope == kBar) return who + " waits for what was promised to it (line " + std::to_string(f.line) + ")";
  return who + " waits at a barrier of its " + kNames[f.scope] + " (line " + std::to_string(f.line) + ")";
}

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("row " + std::to_string(here.row) + ": " + what);
}

[[noreturn]] void diverged(const Fiber& a, const Fiber& b) {
  fail("a barrier is not reached by all threads: " + place_of(a) + ", while " + place_of(b));
}

void enter(Context* from, Fiber* lane) {
  machine.running = lane, here = lane->here;
  fastdecode::emulated::go(from, &lane->context);
}

void leave() {  // to the next lane, and from the last one to the scheduler
  Fiber* const self = machine.running;
  if (machine.error.empty())
    for (Fiber* lane = self; lane != machine.last;) {
      lane += machine.step;
      if (lane->state == kReady) return enter(&self->context, lane);
    }
  fastdecode::emulated::go(&self->context, &machine.scheduler);
}

void begin() {
  fastdecode::emulated::arrive(&machine.running->context, &machine.scheduler);
  (*machine.kernel)();
  machine.running->state = kDone;
  leave();
  abort();
}

bool same_place(const Fiber& a, const Fiber& b) {
  return a.state == b.state &&
         (a.state == kDone || (a.scope == b.scope && a.line == b.line &&
                               (a.scope != kBar || (a.bar == b.bar && a.parity == b.parity))));
}

BarState& bar_in(uint64_t* bar, int r) {
  const Here& at = machine.running->here;
  if (r < 0 || r >= at.ranks) stop("a word to a block that is not in the cluster");
  if (r != at.rank) look_for(r);
  const auto found =
      machine.bars.find(reinterpret_cast<uint64_t*>(at.blocks[r] + (reinterpret_cast<char*>(bar) - at.shared)));
  if (found == machine.bars.end()) stop("a word to a barrier that is not there yet");
  return found->second;
}

// Runs a warp until all its lanes wait at a wider barrier or have ended.
void run_warp(Warp& warp) {
  for (;;) {
    machine.blocks[size_t(warp.lanes[0].here.rank)].started = true;
    // All of them are ready, or none.
    const bool backwards = roll() & 1;
    machine.last = warp.lanes + (backwards ? 0 : 31), machine.step = backwards ? -1 : 1;
    enter(&machine.scheduler, warp.lanes + (backwards ? 31 : 0));
    if (!machine.error.empty()) fail(machine.error);
    for (int i = 1; i < 32; ++i)
      if (!same_place(warp.lanes[0], warp.lanes[i])) diverged(warp.lanes[0], warp.lanes[i]);
    if (warp.lanes[0].state == kDone || warp.lanes[0].scope != kWarp) return;
    for (int i = 0; i < 32; ++i) warp.lanes[i].state = kReady;
  }
}

void check_gaps(const Block& block) {
  for (const auto& gap : block.gaps) {
#if FD_ASAN
    ASAN_UNPOISON_MEMORY_REGION(gap.first, gap.second);
#endif
    for (size_t i = 0; i < gap.second; ++i)
      if (gap.first[i] != char(0xA5)) fail("shared memory was written past the end of an array");
  }
}

void run_cluster(int64_t row) {
  const auto& grid = machine.grid;
  const int warps = grid.threads / 32;
  for (int r = 0; r < grid.ranks; ++r) {
    Block& block = machine.blocks[size_t(r)];
    block.gaps.clear();
    block.started = false;
    for (size_t i = 0; i < grid.shared_bytes; ++i) block.shared[i] = char(0x7f + 37 * i);
    for (int t = 0; t < grid.threads; ++t) {
      const size_t index = size_t(r) * size_t(grid.threads) + size_t(t);
      Fiber& f = machine.fibers[index];
      f.state = kReady, f.turn = 0, f.arrived = false;
      f.here = {t, grid.threads, r, grid.ranks, row, block.shared, machine.shared.data(), grid.shared_bytes};
      machine.stacks[index]->prepare(&f.context, begin);
    }
  }
  here.row = row;
  machine.bars.clear();
  // Warps in an order of its own for each row.
  std::vector<int> order(size_t(warps * grid.ranks));
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t other = size_t(roll() % (i + 1));
    order[i] = order[other], order[other] = int(i);
  }

  // One block may come late: nobody may rely on its having started.
  const int late = int(roll() % uint64_t(grid.ranks)), patience = int(roll() % 4);
  bool waits = true;
  for (int sweep = 0;; ++sweep) {
    bool progress = false;
    waits = waits && sweep < patience;
    for (const int w : order) {
      Warp& warp = machine.blocks[size_t(w / warps)].warps[size_t(w % warps)];
      if (warp.lanes[0].state != kReady || (waits && w / warps == late)) continue;
      run_warp(warp);
      progress = true;
    }
    // Warps that wait for what was posted, whole blocks, then the whole cluster.
    bool all_done = true, cluster_waits = true;
    const Fiber& first = machine.fibers[0];
    for (Block& block : machine.blocks) {
      if (!block.started) {
        all_done = cluster_waits = false;
        continue;
      }
      const Fiber* lead = nullptr;
      bool all_there = true;
      for (Warp& warp : block.warps) {
        Fiber& lane = warp.lanes[0];
        if (lane.state == kWaiting && lane.scope == kBar) {
          all_there = false;
          if (!machine.bars.at(lane.bar).has_passed(lane.parity)) continue;
          machine.bars.at(lane.bar).deliver();
          for (int i = 0; i < 32; ++i) warp.lanes[i].state = kReady;
          progress = true;
        } else if (lead && !same_place(*lead, lane)) {
          diverged(*lead, lane);
        } else {
          lead = &lane;
        }
      }
      all_done &= all_there && lead->state == kDone;
      cluster_waits &= all_there && lead->state == kWaiting && lead->scope == kCluster;
      if (all_there && lead->state == kWaiting && lead->scope == kBlock) {
        for (Warp& warp : block.warps)
          for (int i = 0; i < 32; ++i) warp.lanes[i].state = kReady;
        progress = true;
      }
    }
    if (all_done) break;
    if (cluster_waits) {
      for (Block& block : machine.blocks)
        if (!same_place(first, block.warps[0].lanes[0])) diverged(first, block.warps[0].lanes[0]);
      for (Fiber& f : machine.fibers) f.state = kReady;
      progress = true;
    }
    if (!progress && waits) {
      waits = false;
      continue;
    }
    if (!progress) {
      for (Fiber& f : machine.fibers)
        if (f.state == kWaiting && f.scope == kBar) fail("nothing comes: " + place_of(f));
      for (Block& block : machine.blocks)
        for (Warp& warp : block.warps)
          if (!same_place(first, warp.lanes[0])) diverged(first, warp.lanes[0]);
      fail("nothing goes on: " + place_of(first));
    }
  }
  for (const auto& bar : machine.bars)
    if (!bar.second.is_at_rest()) fail("a block ended before all that was posted to it had arrived");
  for (const Block& block : machine.blocks) check_gaps(block);
}

}  // namespace

#if FD_COUNTED
long counts[kCounts];

void count(Count what) { counts[what] += here.rank == 0; }
void count_in_warp(Count what) { counts[what] += here.rank == 0 && here.thread % 32 == 0; }

bool in_shared(const void* place) {
  const char* const at = static_cast<const char*>(place);
  for (int r = 0; r < here.ranks; ++r)
    if (at >= here.blocks[r] && at < here.blocks[r] + here.shared_bytes) return true;
  return false;
}
#else
void count(Count) {}
void count_in_warp(Count) {}
bool in_shared(const void*) { return false; }
#endif

void wait(Scope scope, int line) {
  if (scope == kWarp)
    count_in_warp(kWarpWaits);
  else if (here.thread == 0 && scope != kBar)
    count(scope == kBlock ? kBlockBarriers : kClusterBarriers);
  Fiber* const self = machine.running;
  if (scope == kCluster && !self->arrived) stop("a wait for the cluster without having arrived");
  self->arrived &= scope != kCluster;
  self->state = kWaiting, self->scope = scope, self->line = line;
  leave();
}

uint64_t* slots(int) {
  Fiber& self = *machine.running;
  Block& block = machine.blocks[size_t(here.rank)];
  return block.warps[size_t(here.thread / 32)].slots[self.turn++ & 1];
}

void arrive_at_cluster() {
  if (machine.running->arrived) stop("a second arrival at the cluster's barrier");
  machine.running->arrived = true;
}

void init_bar(uint64_t* bar, int arrivals) {
  if (machine.bars.count(bar)) stop("a barrier is made a second time");
  BarState& state = machine.bars[bar];
  state.expected = state.pending = arrivals;
}

void promise(uint64_t* bar, int r, int bytes) {
  BarState& state = bar_in(bar, r);
  if (state.pending == 0) stop("more promises than a phase takes");
  --state.pending, state.bytes += bytes;
  state.end_phase();
}

void post(char* place, int r, const void* what, size_t bytes, uint64_t* bar) {
  BarState& state = bar_in(bar, r);
  const Here& at = machine.running->here;
  if (place < at.shared || place + bytes > at.shared + at.shared_bytes)
    stop("a word to what is not in shared memory");
  if ((place - at.shared) % 16) stop("a word of 16 bytes to an address that is not aligned");
  if (r != at.rank) count(kRemotes);
  char* const to = at.blocks[r] + (place - at.shared);
  if (roll() & 1)
    memcpy(to, what, bytes);
  else
    state.coming.push_back({to, std::string(static_cast<const char*>(what), bytes)});
  state.bytes -= long(bytes);
  state.end_phase();
}

void await(uint64_t* bar, int parity, int line) {
  const BarState& state = bar_in(bar, here.rank);
  if (here.thread == 0 && state.expected == here.ranks && here.ranks > 1) count(kClusterBarriers);
  machine.running->bar = bar, machine.running->parity = parity;
  wait(kBar, line);
}

void watch(char* gap, size_t bytes) {
  if (here.thread != 0) return;
  memset(gap, 0xA5, bytes);
  machine.blocks[size_t(here.rank)].gaps.push_back({gap, bytes});
#if FD_ASAN
  ASAN_POISON_MEMORY_REGION(gap, bytes);
#endif
}

void look_for(int rank) {
  const Block& block = machine.blocks[size_t(rank)];
  if (!block.started) stop("a word to a block that has not started");
  for (const Warp& warp : block.warps)
    if (warp.lanes[0].state != kDone) return;
  stop("a word to a block that has ended");
}

void stop(const char* why) {
  machine.error = place_of(*machine.running) + " last; now: " + why;
  leave();
  abort();
}

}  // namespace emulated
}  // namespace cuda

namespace emulated {

#if FD_COUNTED
// Of all launches since the last call; python takes them by ctypes.
extern "C" __attribute__((visibility("default"))) void fd_take_counts(long* into) {
  for (int i = 0; i < cuda::emulated::kCounts; ++i) into[i] = cuda::emulated::counts[i], cuda::emulated::counts[i] = 0;
}
#endif

void run(const Grid& grid, const std::function<void()>& kernel) {
  auto& machine = cuda::emulated::machine;
  machine.grid = grid, machine.kernel = &kernel, machine.error.clear();
  const size_t fibers = size_t(grid.ranks) * size_t(grid.threads);
  while (machine.stacks.size() < fibers) machine.stacks.push_back(std::make_unique<Stack>());
  machine.fibers = std::vector<cuda::emulated::Fiber>(fibers);
  machine.blocks = std::vector<cuda::emulated::Block>(size_t(grid.ranks));
  std::vector<std::unique_ptr<char, void (*)(void*)>> memory;
  machine.shared.clear();
  for (int r = 0; r < grid.ranks; ++r) {
    // A piece of its own for each block, of just that size: one byte past it is AddressSanitizer's.
    memory.emplace_back(static_cast<char*>(aligned_alloc(16, (grid.shared_bytes + 15) / 16 * 16)), free);
    auto& block = machine.blocks[size_t(r)];
    block.shared = memory.back().get();
    machine.shared.push_back(block.shared);
    block.warps = std::vector<cuda::emulated::Warp>(size_t(grid.threads / 32));
    for (size_t w = 0; w < block.warps.size(); ++w)
      block.warps[w].lanes = &machine.fibers[size_t(r) * size_t(grid.threads) + 32 * w];
  }
  machine.scheduler = {};
  try {
    for (int64_t row = 0; row < grid.rows; ++row) cuda::emulated::run_cluster(row);
  } catch (...) {
#if FD_ASAN
    for (auto& block : machine.blocks) ASAN_UNPOISON_MEMORY_REGION(block.shared, grid.shared_bytes);
#endif
    cuda::emulated::here = {};
    throw;
  }
  cuda::emulated::here = {};
}

}  // namespace emulated
}  // namespace fastdecode
