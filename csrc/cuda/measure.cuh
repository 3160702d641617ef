// What: the passes over a row: open (one read: group maxima, specials, sums of the whole row), sums, spread.
// Contract: row.cuh. All threads of the cluster call each pass; a pass ends in a cluster barrier.
// Idea: 1. open: while a group comes in from memory, its maximum, and its sums relative to that maximum, so that nobody waits for
//   the row's; 2. sums over the survivors, group by group into every block's table, for the draw; 3. what a standard deviation and a
//   sum of p^2 need.
// Who does what: a warp a group. Numbers: exponentials in float, 8 of a lane added in float, all else in fixed point; the squares of
//   spread in double, added in a fixed order. Randomness: none.
// Cost: open reads the row once, with as many loads in flight as registers allow. Limits: none.
#pragma once

#include "row.cuh"

namespace fastdecode {
namespace cuda {

// Sums over the 8 tokens of a lane that lie in [bottom, hi], relative to `ref`.
struct LaneSums {
  float mass, moment;
  int n;
};

FD_DEVICE LaneSums sums_of_lane(const float (&x)[kEach], float ref, float c, float bottom, float hi) {
  float w[kEach], m[kEach];
  LaneSums sums{0, 0, 0};
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const bool in = x[j] >= bottom && x[j] <= hi;
    const float y = in ? fmaxf((x[j] - ref) * c, kLeast) : kLeast;
    w[j] = in ? exp2_of(y) : 0.0f;
    m[j] = -w[j] * y;
    sums.n += in;
  }
  sums.mass = sum_of_8(w), sums.moment = sum_of_8(m);
  return sums;
}

// A group's sums, told to every block's table.
FD_DEVICE void tell(const Row& row, int g, int64_t mass, int64_t moment) {
  if (lane() >= ranks()) return;
  of_rank(row.memory.table.mass + g, lane())[0] = mass;
  of_rank(row.memory.table.moment + g, lane())[0] = moment;
}

// Adds the table up, relative to the top of the row; every block for itself.
FD_CALLED Exact sum_of_table(Row& row, float c, int64_t n) {
  constexpr double unit = 1.0 / double(int64_t(1) << (kFineBits - kSumBits));
  const Table& table = row.memory.table;
  int64_t v[2] = {0, 0};
  for (int g = thread(); g < row.groups; g += threads()) {
    const int64_t mass = table.mass[g];
    if (!mass) continue;
    const float y = row.scaled(fminf(table.max[g], row.hi), c);
    const double f = double(exp2_of(y)) * unit;
    v[0] += llrint(double(mass) * f);
    v[1] += llrint((double(table.moment[g]) - double(mass) * double(y)) * f);
  }
  row.team.over_block(Sum(), v);
  return {n, v[0], v[1]};
}

// 1. c = 0: no sums. False: the row cannot be sampled, and *status says why.
FD_DEVICE bool open_once(Row& row, float c, int64_t* nan, int64_t* inf) {
  constexpr int kAhead = 4;  // groups in flight
  Slice& slice = row.slice;
  uint32_t most = 0;
  float lowest = INFINITY;
  int dead = 0, nans = 0, infs = 0;
  for (int g0 = slice.first + warp(); g0 < slice.end; g0 += kAhead * warps()) {
    Raw raw[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int g = g0 + k * warps();
      if (g < slice.end) raw[k] = slice.overflow ? slice.recall(g) : slice.fetch(g);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int g = g0 + k * warps();
      if (g >= slice.end) continue;
      if (!slice.overflow) slice.hold(g, raw[k]);
      float x[kEach];
      slice.unpack(raw[k], x);
      float largest = -INFINITY;
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        largest = fmaxf(largest, x[j]);
        lowest = fminf(lowest, x[j] > -INFINITY ? x[j] : INFINITY);
        nans += x[j] != x[j], infs += x[j] == INFINITY, dead += x[j] == -INFINITY;
      }
      const uint32_t key = most_in_warp(key_of(largest));
      most = key > most ? key : most;
      largest = float_of_key(key);
      if (lane() < ranks()) of_rank(row.memory.table.max + g, lane())[0] = largest;
      if (c == 0) continue;
      int64_t mass = 0, moment = 0;
      if (largest >= kLowest && largest < INFINITY) {
        const LaneSums sums = sums_of_lane(x, largest, c, kLowest, INFINITY);
        mass = fine_sum_in_warp(sums.mass), moment = fine_sum_in_warp(sums.moment);
      }
      tell(row, g, mass, moment);
    }
  }
  const int64_t held = int64_t(slice.end > slice.first ? slice.end - slice.first : 0) * kGroupSize;
  int64_t v[5] = {(thread() == 0 ? held : 0) - dead, nans, infs, most, int64_t(~key_of(lowest))};
  row.team.over_cluster(SumThenMost<3>(), v);
  row.alive = row.n = v[0], *nan = v[1], *inf = v[2];
  row.max = row.top = float_of_key(uint32_t(v[3]));
  row.lowest = float_of_key(~uint32_t(v[4]));
  return v[0] > 0;
}

FD_DEVICE Status open(Row& row, float c) {
  row.lo = -INFINITY, row.hi = INFINITY;
  row.listed = 0, row.list_lo = INFINITY, row.list_hi = -INFINITY, row.pulled = false;
  row.sums_c = row.masses_c = row.whole_c = 0;
  int64_t nan, inf;
  bool some = open_once(row, c, &nan, &inf);
  if (nan) return kNan;
  if (inf) {  // those tokens share all the mass: 0 there, nothing elsewhere
    row.slice.overflow = true;
    some = open_once(row, c, &nan, &inf);
  }
  if (!some) return kEmpty;
  if (c == 0) return kOk;
  row.sums = row.whole = sum_of_table(row, c, row.n);
  row.sums_c = row.whole_c = row.masses_c = c;
  return kOk;
}

// 2. Sums over the logits in [lo, hi], into the table and added up.
FD_CALLED Exact pass_of_sums(Row& row, float c) {
  const float bottom = row.bottom();
  int64_t v[1] = {0};
  sync_cluster();  // the table may still be read
  for (int g = row.slice.first + warp(); g < row.slice.end; g += warps()) {
    const float largest = row.memory.table.max[g];
    int64_t mass = 0, moment = 0;
    if (largest >= bottom) {
      float x[kEach];
      row.slice.load(g, x);
      const LaneSums sums = sums_of_lane(x, fminf(largest, row.hi), c, bottom, row.hi);
      v[0] += sums.n;
      mass = fine_sum_in_warp(sums.mass), moment = fine_sum_in_warp(sums.moment);
    }
    tell(row, g, mass, moment);
  }
  row.team.over_cluster(Sum(), v);
  row.pulled = false;
  return sum_of_table(row, c, v[0]);
}

// 3. In logits: of x - top, and of exp(2 y) relative to the top.
struct Spread {
  double n, sum, squares, mass2;
};

FD_CALLED Spread pass_of_spread(Row& row, float c) {
  const float bottom = row.bottom();
  Table& table = row.memory.table;
  int64_t v[2] = {0, 0};
  sync_cluster();
  for (int g = row.slice.first + warp(); g < row.slice.end; g += warps()) {
    double sum = 0, squares = 0;
    if (table.max[g] >= bottom) {
      float x[kEach], d[kEach], d2[kEach], w2[kEach];
      row.slice.load(g, x);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const bool in = x[j] >= bottom && x[j] <= row.hi;
        d[j] = in ? x[j] - row.top : 0.0f;
        d2[j] = d[j] * d[j];
        w2[j] = in ? exp2_of(fmaxf(d[j] * (2 * c), kLeast)) : 0.0f;
        v[0] += in;
      }
      sum = double(sum_of_8(d)), squares = double(sum_of_8(d2));
      if (!(squares < INFINITY)) {  // logits near the lowest float, as masks use them: only double holds their squares
        sum = squares = 0;
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          const double e = x[j] >= bottom && x[j] <= row.hi ? double(x[j]) - double(row.top) : 0.0;
          sum += e, squares += e * e;
        }
      }
      v[1] += fixed_of<kSumBits>(sum_of_8(w2));
    }
    sum = sum_in_warp_in_order(sum), squares = sum_in_warp_in_order(squares);
    int64_t bits[2];
    memcpy(bits, &sum, 8), memcpy(bits + 1, &squares, 8);
    tell(row, g, bits[0], bits[1]);
  }
  row.masses_c = 0;
  row.team.over_cluster(Sum(), v);
  row.pulled = false;

  double(*chunk)[kMaxGroups / kLanes] = row.team.mail->chunk;
  const int chunks = (row.groups + kLanes - 1) / kLanes;
  for (int k = warp(); k < chunks; k += warps()) {
    const int g = k * kLanes + lane();
    double two[2] = {0, 0};
    if (g < row.groups) memcpy(two, table.mass + g, 8), memcpy(two + 1, table.moment + g, 8);
    two[0] = sum_in_warp_in_order(two[0]), two[1] = sum_in_warp_in_order(two[1]);
    if (lane() < 2) chunk[lane()][k] = lane() ? two[1] : two[0];
  }
  sync_block();
  Spread spread{double(v[0]), 0, 0, double(v[1]) / double(int64_t(1) << kSumBits)};
  for (int k = 0; k < chunks; ++k) spread.sum += chunk[0][k], spread.squares += chunk[1][k];
  return spread;
}

}  // namespace cuda
}  // namespace fastdecode
