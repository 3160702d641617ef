// What: one row as its threads know it, and how its shared memory is laid out.
// Contract: everything in Row is the same in all threads of the cluster but `listed` tokens' order, which differs by block.
// Idea: survivors are the logits in [lo, hi]; the table has a few numbers for each group of 256 tokens, and every block has
//   the whole table: what is decided by groups needs no talk. The list has a few tokens of interest, again in every block.
// Who does what: see team.cuh. Numbers: sums are relative to the largest survivor, in a group to the smaller of hi and its maximum.
// Randomness: none. Cost: 20 bytes of shared memory a group, 28 a listed token. Limits: 4096 groups, 2^20 tokens.
#pragma once

#include "slice.cuh"

namespace fastdecode {
namespace cuda {

constexpr int kList = 1024, kBins = 1024;
constexpr float kLeast = -125.0f;  // 2^-125 is nothing beside a sum that holds a 1; nothing below is told apart

// For each group of the row: its largest logit, and sums over its survivors at the scale of the last pass.
struct Table {
  float* max;
  int64_t* mass;
  int64_t* moment;
};

struct List {
  float* x;
  int32_t* id;
  uint32_t* key;    // what a search orders by; 0: not part of it
  int64_t* mass;    // in units of 2^-kSumBits
  int64_t* moment;
};

// For a search among many tokens; lies where the list lies.
struct Bins {
  uint32_t* mine;  // [2][kBins], of this block
  uint32_t* all;   // [2][kBins], of the cluster
};

// Hands out shared memory, or counts the bytes if it starts at null.
struct Room {
  char* base;
  int64_t used;
  template <class T>
  FD_BOTH T* take(int64_t n) {
    const int64_t start = used;
    used += (n * int64_t(sizeof(T)) + 15) / 16 * 16 + kGap;
    if (!base) return nullptr;
    guard(base + start + n * int64_t(sizeof(T)), used - start - n * int64_t(sizeof(T)));
    return reinterpret_cast<T*>(base + start);
  }
};

struct Memory {
  Mailbox* mail;
  Table table;
  List list;
  Bins bins;
  char* held;
};

FD_BOTH Memory lay_out(Room& room, int groups, int64_t held_bytes) {
  Memory m;
  m.mail = room.take<Mailbox>(1);
  m.table = {room.take<float>(groups), room.take<int64_t>(groups), room.take<int64_t>(groups)};
  m.list = {room.take<float>(kList), room.take<int32_t>(kList), room.take<uint32_t>(kList), room.take<int64_t>(kList),
            room.take<int64_t>(kList)};
  m.bins = {reinterpret_cast<uint32_t*>(m.list.mass), reinterpret_cast<uint32_t*>(m.list.moment)};
  static_assert(2 * kBins * 4 <= 8 * kList, "the bins of a block lie where the list's masses do");
  m.held = held_bytes ? room.take<char>(held_bytes) : nullptr;
  return m;
}

// Sums over tokens, in fixed point; the moment is of -y, y = (x - top) / (T ln 2).
struct Exact {
  int64_t n, mass, moment;
  FD_MEMBER Sums sums() const {
    constexpr double unit = 1.0 / double(int64_t(1) << kSumBits);
    Sums s;
    s.n = double(n), s.mass = double(mass) * unit, s.moment = -double(moment) * unit * kLn2;
    return s;
  }
};

FD_DEVICE Exact plus(const Exact& a, const Exact& b) { return {a.n + b.n, a.mass + b.mass, a.moment + b.moment}; }

FD_DEVICE float scale_of(double temperature) {
  return float(fmin(1.0 / (temperature * kLn2), 3.402823466e38));  // what is hotter or colder yet is all the same
}

// What tokens are ordered by, at a scale: their logit, or how near they are to the centre of a typicality order.
struct Keys {
  bool by_logit;
  float centre;
  FD_MEMBER float of(float x, float y) const { return by_logit ? x : -fabsf(y - centre); }
};

struct Row {
  Team team;
  Slice slice;
  Memory memory;
  int groups;

  float max, lowest;           // of the row, above -inf
  float lo, hi, top;           // the survivors are the logits in [lo, hi], of which `top` is the largest
  int64_t alive, n;            // tokens above -inf; survivors, -1: not counted yet
  int listed;                  // tokens on the list: those in [list_lo, list_hi]
  float list_lo, list_hi;
  bool pulled;                 // others may still be reading this block's list
  Exact sums, whole;           // over the survivors, over the row;
  float sums_c, whole_c;       // the scales they are at, 0: none
  float masses_c;              // of the table's masses

  FD_MEMBER float bottom() const { return fmaxf(lo, kLowest); }
  FD_MEMBER bool open() const { return lo == -INFINITY && hi == INFINITY; }
  FD_MEMBER bool list_covers() const { return list_lo <= bottom() && fminf(hi, max) <= list_hi; }
  FD_MEMBER float scaled(float x, float c) const { return fmaxf((x - top) * c, kLeast); }

  // Calls look(g, x) for each of this warp's groups that may hold a logit at or above `bound`.
  template <class Look>
  FD_MEMBER void each_group(float bound, Look look) const {
    for (int g = slice.first + warp(); g < slice.end; g += warps()) {
      if (!(memory.table.max[g] >= bound)) continue;
      float x[kEach];
      slice.load(g, x);
      look(g, x);
    }
  }

  // The survivors are others now.
  FD_MEMBER void narrow(float new_lo, float new_hi) {
    lo = fmaxf(lo, new_lo), hi = fminf(hi, new_hi), top = fminf(top, hi);
    n = -1, sums_c = masses_c = 0;
  }
};

}  // namespace cuda
}  // namespace fastdecode
