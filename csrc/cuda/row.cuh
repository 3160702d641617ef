// What: one row as its threads know it, and how its shared memory is laid out.
// Contract: a block's threads see one Row, in its shared memory; it says the same in all blocks of the cluster, but for the slice.
//   It changes between two barriers, by the hand of one thread: `change`. (As a variable of each thread it would be local memory:
//   for 512 threads more than what shared memory leaves of an L1 cache.)
// Idea: survivors are the logits in [lo, hi]. Every block knows the largest logit of every group; the sums of a group are known where
//   its tokens are, and of 8 groups together everywhere. The list has a few tokens of interest, again in every block.
// Who does what: see team.cuh. Numbers: sums are relative to `top`, in a group to the smaller of hi and its maximum.
// Randomness: none. Cost: 4 bytes of shared memory a group, 16 more where it lies; 16 a listed token. Limits: 4096 groups, 2^20 tokens.
#pragma once

#include "slice.cuh"

namespace fastdecode {
namespace cuda {

constexpr int kList = 960;  // so that two blocks with 64 KB of logits fit side by side
constexpr int kSegment = 128;  // tokens of the list that a block posts in a round
constexpr int kBins = 256;
constexpr int kCuts = 16;  // of a plan, kept in shared memory
constexpr float kLeast = -125.0f;  // 2^-125 cannot change a sum that is at least 1; nothing below is told apart

struct Pair {
  double mass, moment;
};

// What is known about groups at the scale of the last pass. `max` is of all groups of the row, up to a whole chunk; mass and moment
// are of this block's groups and begin with its first; `chunks` are of the row, twice (team.cuh).
struct Table {
  float* max;
  double* mass;
  double* moment;
  Pair* chunks;
};

struct Listed {
  float x;
  int32_t id;
};

struct List {
  float* x;
  int32_t* id;
  uint32_t* key;  // what a search orders by; 0: not part of it
  float* w;       // its mass relative to the top
  Listed* stash;  // in the place of key and w: tokens of this block that are going to be listed
};

// Hands out shared memory, or counts the bytes if it starts at null. `watched`: what lies between the arrays may not be written
// from now on.
struct Room {
  char* base;
  int64_t used;
  bool watched;
  template <class T>
  FD_BOTH T* take(int64_t n) {
    const int64_t start = used;
    used += (n * int64_t(sizeof(T)) + 15) / 16 * 16 + kGap;
    if (watched) guard(base + start + n * int64_t(sizeof(T)), used - start - n * int64_t(sizeof(T)));
    return reinterpret_cast<T*>(base + start);
  }
};

// What tokens are ordered by, at a scale: their logit, or how near they are to the centre of a typicality order.
struct Keys {
  bool by_logit;
  float centre;
  FD_MEMBER float of(float x, float y) const { return by_logit ? x : -fabsf(y - centre); }
};

// A prefix that is being searched for its edge: the cut, the sums over all survivors, what it must reach; and the sums over what is
// known to be kept.
struct Walk {
  Cut cut;
  Sums whole, above;
  double need;
  Keys keys;
  float c;

  FD_MEMBER bool by_count() const { return int(cut.measure) == kCount; }
  FD_MEMBER bool reached(const Sums& part) const { return reaches(cut, part, whole, need); }
};

struct Row {
  Slice slice;
  float max, lowest;  // of the row, above -inf
  float lo, hi, top;  // the survivors are the logits in [lo, hi], of which `top` is the largest
  bool top_is_one;    // or, if not, is so near to the largest at scale top_c, and at smaller ones, that sums are good
  float top_c;
  int64_t alive, n;   // tokens above -inf; survivors, -1: not counted yet
  int listed;         // tokens on the list: those in [list_lo, list_hi]
  float list_lo, list_hi;
  Sums sums, whole;       // over the survivors, over the row;
  float sums_c, whole_c;  // the scales they are at, 0: none
  float masses_c;         // of the table's masses
  double ln_raw;          // ln of the row's mass at temperature 1, NaN: not known
  double scaled_mass;     // the row's mass at the plan's own temperature, where statistics ask for it
  int64_t seed, step;     // those of the launch
  int turn;               // which of several temperatures it is at
  Cut cut;                // and at which cut of the plan
  Walk walk;

  FD_MEMBER float bottom() const { return fmaxf(lo, kLowest); }
  FD_MEMBER bool open() const { return lo == -INFINITY && hi == INFINITY; }
  FD_MEMBER bool list_covers() const { return list_lo <= bottom() && fminf(hi, max) <= list_hi; }

  // The list holds nothing that anybody could rely on.
  FD_MEMBER void forget_list() { listed = 0, list_lo = INFINITY, list_hi = -INFINITY; }

  // All that is not -inf survives, and no sums are known.
  FD_MEMBER void reopen() {
    lo = -INFINITY, hi = INFINITY, top = max, top_is_one = true, n = alive, sums_c = masses_c = 0;
    forget_list();
  }

  // The survivors are others now.
  FD_MEMBER void narrow(float new_lo, float new_hi) {
    lo = fmaxf(lo, new_lo), hi = fminf(hi, new_hi), top = fminf(top, hi);
    n = -1, sums_c = masses_c = 0;
  }
};

struct Memory {
  Mailbox* mail;
  Row* row;
  Cut* cuts;
  List list;
  uint32_t* bins;
  char* inbox;  // kSegment tokens, or kBins bins, of each block, twice
  Table table;
  Bar* loads;
  char* held;
};

constexpr int kLetter = kSegment * int(sizeof(Listed));
static_assert(kLetter == kBins * int(sizeof(uint32_t)), "tokens or bins");

FD_BOTH int chunks_in(int groups) { return (groups + kChunkGroups - 1) / kChunkGroups; }

// First what lies at a place known to the compiler.
FD_BOTH Memory lay_out(Room& room, int groups, int per_block, int ranks, int64_t held_bytes) {
  Memory m;
  m.mail = room.take<Mailbox>(1);
  m.row = room.take<Row>(1);
  m.cuts = room.take<Cut>(kCuts);
  m.list.x = room.take<float>(kList);
  m.list.id = room.take<int32_t>(kList);
  m.list.stash = room.take<Listed>(kList);
  m.list.key = reinterpret_cast<uint32_t*>(m.list.stash);
  m.list.w = reinterpret_cast<float*>(m.list.stash) + kList;
  m.bins = room.take<uint32_t>(kBins + kLanes);  // the last for tokens that belong to none
  m.table.mass = room.take<double>(per_block);
  m.table.moment = room.take<double>(per_block);
  m.table.max = room.take<float>(chunks_in(groups) * kChunkGroups);
  m.table.chunks = room.take<Pair>(2 * chunks_in(groups));
  m.inbox = room.take<char>(2 * ranks * kLetter);
  m.loads = room.take<Bar>(per_block / kAhead);
  m.held = room.take<char>(held_bytes);
  return m;
}

FD_DEVICE Row& row_to_change() {
  Room room{shared_memory(), 0, false};
  return *lay_out(room, 0, 0, 0, 0).row;
}

FD_DEVICE const Row& row() { return row_to_change(); }

FD_DEVICE Memory memory() {
  Room room{shared_memory(), 0, false};
  return lay_out(room, row().slice.groups, row().slice.per_block, ranks(), 0);
}

// Who has read the row before has read what it was, who reads it after reads what it is.
template <class How>
FD_DEVICE void change(How how) {
  sync_block();
  if (thread() == 0) how(row_to_change());
  sync_block();
}

FD_DEVICE Sums sums_of(double n, double mass, double moment) {
  Sums s;
  s.n = n, s.mass = mass, s.moment = moment;
  return s;
}

FD_DEVICE Sums plus(const Sums& a, const Sums& b) { return sums_of(a.n + b.n, a.mass + b.mass, a.moment + b.moment); }

FD_DEVICE float scale_of(double temperature) {
  return float(fmin(1.0 / (temperature * kLn2), 3.402823466e38));  // what is hotter or colder yet is all the same
}

// (x - top) c: finite, so that a weight of 0 times it is 0; not cut off where weights end, because a typicality tells keys apart
// below.
FD_DEVICE float scaled(float x, float top, float c) { return fmaxf((x - top) * c, kLowest); }

// The batches of this warp: neighbours, so that what warps find one after the other lies in the order of ids.
struct Batches {
  int first, end;
};

FD_DEVICE Batches batches_of_warp(const Slice& slice) {
  const int all = slice.batches(), each = (all + warps() - 1) / warps(), first = warp() * each;
  return {first < all ? first : all, first + each < all ? first + each : all};
}

// Calls look(g, x) for each of this warp's groups that may hold a logit at or above `bound`.
template <class Look>
FD_DEVICE void each_group(float bound, Look look) {
  const Slice slice = row().slice;
  const float* const maxima = memory().table.max;
  const Batches mine = batches_of_warp(slice);
  for (int g = slice.first + kAhead * mine.first; g < slice.first + kAhead * mine.end; ++g) {
    if (!(maxima[g] >= bound)) continue;
    float x[kEach];
    slice.load(g, x);
    look(g, x);
  }
}

}  // namespace cuda
}  // namespace fastdecode
