// What: the passes over a row: open (one read: group maxima, specials, sums of the whole row), sums, spread.
// Contract: row.cuh. All threads of the cluster call each pass; a pass ends in a cluster barrier.
// Idea: 1. open: while a group comes in from memory, its maximum, and its sums relative to that maximum, so that nobody waits for
//   the row's; 2. sums over the survivors, group by group into every block's table, for the draw; 3. what a standard deviation and a
//   sum of p^2 need.
// Who does what: a warp a group. Numbers: exponentials in float, 8 of a lane added in float, all else in double.
// Randomness: none.
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

// `all`: they all do, so that nobody need ask.
FD_DEVICE LaneSums sums_of_lane(const float (&x)[kEach], float ref, float c, float bottom, float hi, bool all = false) {
  float w[kEach], m[kEach];
  LaneSums sums{0, 0, 0};
  if (all) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const float y = fmaxf((x[j] - ref) * c, kLeast);
      w[j] = exp2_of(y), m[j] = w[j] * y;
    }
    sums.n = kEach;
  } else {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const bool in = x[j] >= bottom && x[j] <= hi;
      const float y = in ? fmaxf((x[j] - ref) * c, kLeast) : kLeast;
      w[j] = in ? exp2_of(y) : 0.0f;
      m[j] = w[j] * y;
      sums.n += in;
    }
  }
  sums.mass = sum_of_8(w), sums.moment = sum_of_8(m);
  return sums;
}

// Two numbers of each lane, added up over a group and told to every block's table.
FD_DEVICE void tell(const Table& table, int g, double mass, double moment) {
  sum_in_warp(&mass, &moment);
  if (lane() >= ranks()) return;
  of_rank(table.mass + g, lane())[0] = mass;
  of_rank(table.moment + g, lane())[0] = moment;
}

// Adds two numbers of each group up, in an order that is always the same: 32 groups in a warp, then those sums in a warp.
// Every block does it for itself.
template <class Of>
FD_DEVICE void sum_of_groups(Team& team, Of of, double* a, double* b) {
  double (*chunk)[kMaxGroups / kLanes] = mail().chunk;
  const int groups = row().slice.groups, chunks = (groups + kLanes - 1) / kLanes;
  for (int k = warp(); k < chunks; k += warps()) {
    const int g = k * kLanes + lane();
    *a = *b = 0;
    if (g < groups) of(g, a, b);
    sum_in_warp(a, b);
    if (lane() < 2) chunk[lane()][k] = lane() ? *b : *a;
  }
  sync_block();
  constexpr int kMine = kMaxGroups / kLanes / kLanes;
  *a = *b = 0;
#pragma unroll
  for (int j = 0; j < kMine; ++j) {
    const int k = lane() * kMine + j;
    if (k < chunks) *a += chunk[0][k], *b += chunk[1][k];
  }
  sum_in_warp(a, b);
  team.table_in_use = true;
  sync_block();  // before chunk is written again
}

// The sums in the table, relative to the top of the row.
FD_CALLED Sums sum_of_table(Team& team, float c, double n) {
  const Table table = memory().table;
  const float hi = row().hi, top = row().top;
  double mass, moment;
  sum_of_groups(
      team,
      [&](int g, double* a, double* b) {
        const float y = scaled(fminf(table.max[g], hi), top, c);
        const double f = double(exp2_of(y));
        if (table.mass[g] > 0) *a = table.mass[g] * f, *b = (table.moment[g] + table.mass[g] * double(y)) * f;
      },
      &mass, &moment);
  return sums_of(n, mass, moment * kLn2);
}

struct Specials {
  int64_t nan, inf;
};

// 1. c = 0: no sums.
FD_CALLED Specials open_once(Team& team, float c) {
  constexpr int kAhead = 4;  // groups in flight
  const Slice slice = row().slice;
  const Table table = memory().table;
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
      float largest = x[0];
#pragma unroll
      for (int j = 1; j < kEach; ++j) largest = fmaxf(largest, x[j]);
      // Where the sum is a number, all 8 are; only of those few others need anybody count what they are.
      const bool plain = fabsf(sum_of_8(x)) < INFINITY;
      if (plain) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) lowest = fminf(lowest, x[j]);
      } else {
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          lowest = fminf(lowest, x[j] > -INFINITY ? x[j] : INFINITY);
          nans += x[j] != x[j], infs += x[j] == INFINITY, dead += x[j] == -INFINITY;
        }
        if (!(largest == largest)) largest = -INFINITY;  // all 8 are NaN
      }
      const uint32_t key = most_in_warp(key_of(largest));
      most = key > most ? key : most;
      largest = float_of_key(key);
      if (lane() < ranks()) of_rank(table.max + g, lane())[0] = largest;
      if (c == 0) continue;
      LaneSums sums{0, 0, 0};
      if (largest >= kLowest && largest < INFINITY) sums = sums_of_lane(x, largest, c, kLowest, INFINITY, plain);
      tell(table, g, double(sums.mass), double(sums.moment));
    }
  }
  const int64_t held = int64_t(slice.end > slice.first ? slice.end - slice.first : 0) * kGroupSize;
  int64_t v[5] = {(thread() == 0 ? held : 0) - dead, nans, infs, most, int64_t(~key_of(lowest))};
  team.over_cluster(SumThenMost<3>(), v);
  change([&](Row& row) {
    row.alive = v[0];
    row.max = float_of_key(uint32_t(v[3])), row.lowest = float_of_key(~uint32_t(v[4]));
    row.whole_c = 0, row.ln_raw = NAN;
    row.reopen();
    if (v[2] > 0) row.slice.overflow = true;  // those tokens share all the mass: 0 there, nothing elsewhere
  });
  return {v[1], v[2]};
}

FD_CALLED Status open(Team& team, float c) {
  const Specials specials = open_once(team, c);
  if (specials.nan) return kNan;
  if (specials.inf) open_once(team, c);
  if (row().alive == 0) return kEmpty;
  if (c == 0) return kOk;
  const Sums sums = sum_of_table(team, c, double(row().n));
  change([&](Row& row) { row.sums = row.whole = sums, row.sums_c = row.whole_c = row.masses_c = c; });
  return kOk;
}

// 2. Sums over the survivors, into the table and added up.
FD_CALLED Sums pass_of_sums(Team& team, float c) {
  const Slice slice = row().slice;
  const Table table = memory().table;
  const float bottom = row().bottom(), hi = row().hi;
  const bool open = row().open();
  int64_t v[1] = {0};
  team.await_table();
  for (int g = slice.first + warp(); g < slice.end; g += warps()) {
    const float largest = table.max[g];
    LaneSums sums{0, 0, 0};
    if (largest >= bottom) {
      float x[kEach];
      slice.load(g, x);
      const bool plain = open && fabsf(sum_of_8(x)) < INFINITY;
      sums = sums_of_lane(x, fminf(largest, hi), c, bottom, hi, plain);
      v[0] += sums.n;
    }
    tell(table, g, double(sums.mass), double(sums.moment));
  }
  team.over_cluster(Sum(), v);
  return sum_of_table(team, c, double(v[0]));
}

// 3. In logits: of x - top, and of its square; `of_masses`: of exp(2 y) relative to the top, instead of the square.
struct Spread {
  double n, sum, squares;
};

FD_CALLED Spread pass_of_spread(Team& team, float c, bool of_masses) {
  const Slice slice = row().slice;
  const Table table = memory().table;
  const float hi = row().hi, top = row().top;
  const float bottom = bottom_unmasked(row().bottom(), top, slice.dtype);
  int64_t v[1] = {0};
  team.await_table();
  for (int g = slice.first + warp(); g < slice.end; g += warps()) {
    double sum = 0, squares = 0;
    if (table.max[g] >= bottom) {
      float x[kEach], d[kEach], d2[kEach];
      slice.load(g, x);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const bool in = x[j] >= bottom && x[j] <= hi;
        d[j] = in ? x[j] - top : 0.0f;
        d2[j] = !of_masses ? d[j] * d[j] : in ? exp2_of(fmaxf(d[j] * (2 * c), kLeast)) : 0.0f;
        v[0] += in;
      }
      sum = double(sum_of_8(d)), squares = double(sum_of_8(d2));
      if (!(squares < INFINITY)) {  // logits near the lowest float, as masks use them: only double holds their squares
        sum = squares = 0;
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          const double e = x[j] >= bottom && x[j] <= hi ? double(x[j]) - double(top) : 0.0;
          sum += e, squares += e * e;
        }
      }
    }
    tell(table, g, sum, squares);
  }
  team.over_cluster(Sum(), v);
  Spread spread{double(v[0]), 0, 0};
  sum_of_groups(
      team, [&](int g, double* sum, double* squares) { *sum = table.mass[g], *squares = table.moment[g]; }, &spread.sum,
      &spread.squares);
  change([](Row& row) { row.masses_c = 0; });
  return spread;
}

}  // namespace cuda
}  // namespace fastdecode
