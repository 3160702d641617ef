// What: one row as its threads know it, and how its shared memory is laid out.
// Contract: everything in Row is the same in all threads of the cluster but the slice.
// Idea: survivors are the logits in [lo, hi]; the table has a few numbers for each group of 256 tokens, and every block has
//   the whole table: what is decided by groups needs no talk. The list has a few tokens of interest, again in every block.
// Who does what: see team.cuh. Numbers: sums are relative to the largest survivor, in a group to the smaller of hi and its maximum.
// Randomness: none. Cost: 24 bytes of shared memory a group, 20 a listed token. Limits: 4096 groups, 2^20 tokens.
#pragma once

#include "slice.cuh"

namespace fastdecode {
namespace cuda {

constexpr int kList = 1024, kBins = 1024;
constexpr float kLeast = -125.0f;  // 2^-125 is nothing beside a sum that holds a 1; nothing below is told apart

// For each group of the row: its largest logit, and sums over its survivors at the scale of the last pass.
struct Table {
  float* max;
  double* mass;
  double* moment;
  int* place;  // where its tokens begin on the list
};

struct List {
  float* x;
  int32_t* id;
  uint32_t* key;  // what a search orders by; 0: not part of it
  float* w;       // its mass relative to the top,
  float* y;       // 2^y
};

// For a search among many tokens; the list lies in the same memory.
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
  m.table = {room.take<float>(groups), room.take<double>(groups), room.take<double>(groups), room.take<int>(groups)};
  m.bins = {room.take<uint32_t>(2 * kBins), room.take<uint32_t>(2 * kBins)};
  uint32_t* const words = m.bins.mine;
  m.list = {room.take<float>(kList), reinterpret_cast<int32_t*>(words), words + kList,
            reinterpret_cast<float*>(m.bins.all), reinterpret_cast<float*>(m.bins.all) + kList};
  static_assert(kBins == kList, "the list lies where the bins do");
  m.held = held_bytes ? room.take<char>(held_bytes) : nullptr;
  return m;
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

  float max, lowest;  // of the row, above -inf
  float lo, hi, top;  // the survivors are the logits in [lo, hi], of which `top` is the largest
  int64_t alive, n;   // tokens above -inf; survivors, -1: not counted yet
  int listed;         // tokens on the list: those in [list_lo, list_hi]
  float list_lo, list_hi;
  Sums sums, whole;       // over the survivors, over the row;
  float sums_c, whole_c;  // the scales they are at, 0: none
  float masses_c;         // of the table's masses

  FD_MEMBER float bottom() const { return fmaxf(lo, kLowest); }
  FD_MEMBER bool open() const { return lo == -INFINITY && hi == INFINITY; }
  FD_MEMBER bool list_covers() const { return list_lo <= bottom() && fminf(hi, max) <= list_hi; }
  // Finite, so that a weight of 0 times it is 0; not cut off where weights end, because a typicality tells keys apart below.
  FD_MEMBER float scaled(float x, float c) const { return fmaxf((x - top) * c, kLowest); }

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
