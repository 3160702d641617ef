// What: the passes over a row: open (one read: group maxima, specials, sums of the whole row), sums, spread.
// Contract: row.cuh. All threads of the cluster call each pass; a pass is one round of the team.
// Idea: 1. open: while a batch of groups comes in from memory, the maximum of each, and its sums relative to that maximum, so that
//   no group waits for the row's; 2. sums over the survivors, group by group, for the draw; 3. what a standard deviation and a sum of
//   p^2 need.
// Who does what: a warp a batch of 4 groups. Numbers: table.cuh.
// Randomness: none.
// Cost: open reads the row once, all of it in flight from the start. Limits: none.
#pragma once

#include "table.cuh"

namespace fastdecode {
namespace cuda {

// ---- 1. open

// What a thread has seen of the row.
struct Seen {
  uint32_t max_key;
  float lowest;
  int dead, nans, infs;
};

// A batch, from its logits: maxima and, if c is not 0, sums into the table.
template <bool sums>
FD_DEVICE void open_batch(const Table& table, const Slice& slice, int local, float (&x)[kAhead][kEach], float c, Seen* seen) {
  float largest[kAhead], all = 0;
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    largest[k] = x[k][0];
#pragma unroll
    for (int j = 1; j < kEach; ++j) largest[k] = fmaxf(largest[k], x[k][j]);
    all += sum_of_8(x[k]);
  }
  // Where the sum is a number, all are; only of those few others need anything be counted.
  if (!ballot(!(fabsf(all) < INFINITY))) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k)
#pragma unroll
      for (int j = 0; j < kEach; ++j) seen->lowest = fminf(seen->lowest, x[k][j]);
  } else {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        seen->lowest = fminf(seen->lowest, x[k][j] > -INFINITY ? x[k][j] : INFINITY);
        seen->nans += x[k][j] != x[k][j], seen->infs += x[k][j] == INFINITY, seen->dead += x[k][j] == -INFINITY;
      }
      if (!(largest[k] == largest[k])) largest[k] = -INFINITY;  // all 8 are NaN
    }
  }
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    const uint32_t key = max_in_warp(key_of(largest[k]));
    seen->max_key = key > seen->max_key ? key : seen->max_key;
    largest[k] = float_of_key(key);
  }
  static_assert(kAhead == 4, "a lane each");
  if (lane() < kAhead)
    table.max[slice.first + local + lane()] =
        lane() < 2 ? (lane() ? largest[1] : largest[0]) : (lane() == 3 ? largest[3] : largest[2]);
  if (!sums) return;
  double v[2 * kAhead];
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    // Tokens of -inf weigh 2^-125 here, which changes no sum that the maximum is part of; a group without any has no sum.
    const LaneSums lane_sums = sums_of_lane(x[k], largest[k], c);
    const bool is_finite = fabsf(largest[k]) < INFINITY;
    v[k] = is_finite ? double(lane_sums.mass) : 0.0, v[kAhead + k] = is_finite ? double(lane_sums.moment) : 0.0;
  }
  leave_sums(table, local, v);
}

constexpr int kSeen = 5;

// This block's part of the row, batch by batch from `take`: what was seen is left for the block.
template <bool sums, class Take>
FD_DEVICE void open_batches(Team team, float c, Take take) {
  const Slice slice = row().slice;
  const Memory its = memory();
  const Batches mine = batches_of_warp(slice);
  Seen seen{0, INFINITY, 0, 0, 0};
  for (int b = mine.first; b < mine.end; ++b) {
    float x[kAhead][kEach];
    take(slice, its, b, x);
    open_batch<sums>(its.table, slice, kAhead * b, x, c, &seen);
  }
  int64_t v[kSeen] = {-seen.dead, seen.nans, seen.infs, seen.max_key, int64_t(~key_of(seen.lowest))};
  team.leave_part(SumThenMax<3>(), v);
}

// As it comes in.
template <int dtype, bool sums>
FD_CALLED void open_slice(Team team, float c) {
  open_batches<sums>(team, c, [](const Slice& slice, const Memory& its, int b, float (&x)[kAhead][kEach]) {
    Raw raw[kAhead];
    slice.take<dtype>(b, its.loads, raw);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) unpack<dtype>(raw[k], x[k]);
  });
}

// Of a row with tokens of +inf, which is there already.
template <int dtype>
FD_CALLED void open_overflowed(Team team, float c) {
  open_batches<true>(team, c, [](const Slice& slice, const Memory&, int b, float (&x)[kAhead][kEach]) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int g = slice.first + kAhead * b + k;
      slice.load<dtype>(g, x[k]);
      if (slice.held_at) slice.hold_overflowed<dtype>(g, x[k]);
    }
  });
}

FD_DEVICE void open_slice(Team team, float c, bool overflowed) {
  with_type(row().slice.dtype, [&](auto type) {
    constexpr int t = decltype(type)::value;
    if (overflowed)
      open_overflowed<t>(team, c);
    else if (c == 0)
      open_slice<t, false>(team, c);
    else
      open_slice<t, true>(team, c);
  });
}

struct Specials {
  int64_t nan, inf;
};

// The round after that: maxima and sums of all groups. c = 0: no sums.
FD_CALLED Specials open_round(Team team, float c) {
  const SumThenMax<3> op;
  const Slice slice = row().slice;
  const Table table = memory().table;
  int64_t (*part)[kSlots] = mail().part[team.turns() & 1 ^ 1];  // as open_slice left it
  const int own = slice.padded();
  team.promise_all((kSeen + 1) / 2 + own / 4 + (c == 0 ? 0 : own / kChunkGroups));
  team.post_numbers<kSeen>(op, part);
  float* const first = table.max + slice.first;
  team.post_all(own / 4, [&](int i) { return first + 4 * i; }, [&](int i) { return load_chunk(first + 4 * i); });
  if (c != 0) post_table(team, INFINITY, c);
  team.receive();
  int64_t v[kSeen];
  team.fold(op, v);
  const float max = float_of_key(uint32_t(v[3]));
  double mass = 0, moment = 0;
  if (c != 0 && fabsf(max) < INFINITY) sum_of_table(team, INFINITY, max, c, &mass, &moment);
  const int64_t padded = int64_t(chunks_in(slice.groups)) * kChunkGroups * kGroupSize;
  change([&](Row& row) {
    row.alive = padded + v[0];
    row.max = max, row.lowest = float_of_key(~uint32_t(v[4]));
    row.whole_c = 0, row.ln_raw = NAN;
    row.reopen();
    if (v[2] > 0) row.slice.overflow = true;  // those tokens share all the mass: 0 there, nothing elsewhere
    if (c == 0) return;
    row.sums = row.whole = sums_of(double(row.n), mass, moment * kLn2), row.sums_c = row.whole_c = row.masses_c = c;
  });
  return {v[1], v[2]};
}

FD_CALLED Status open(Team team, float c) {
  open_slice(team, c, false);
  if (ranks() > 1) wait_for_cluster();  // before the first word to another block, which may start late
  const Specials specials = open_round(team, c);
  if (specials.nan) return kNan;
  if (specials.inf) {
    open_slice(team, c, true);
    open_round(team, c);
  }
  return row().alive == 0 ? kEmpty : kOk;
}

// ---- 2. sums over the survivors

// Into the table of this block; the thread's own count of survivors.
FD_DEVICE int64_t visit_survivors(float c) {
  const float bottom = row().bottom(), hi = row().hi;
  const float* const maxima = memory().table.max;
  int n = 0;
  each_batch<true>(bottom, [&](int g, const float (&x)[kEach], double* mass, double* moment) {
    const float ref = fminf(maxima[g], hi);
    const LaneSums sums = sums_of_lane(x, ref, c, bottom, hi);
    *mass = double(sums.mass), *moment = double(sums.moment), n += sums.n;
  });
  return n;
}

FD_DEVICE int chunks_posted() { return row().slice.padded() / kChunkGroups; }

FD_CALLED Sums pass_of_sums(Team team, float c) {
  int64_t v[1] = {visit_survivors(c)};
  int64_t (*part)[kSlots] = team.leave_part(Sum(), v);
  team.promise_all(1 + chunks_posted());
  team.post_numbers<1>(Sum(), part);
  post_table(team, row().hi, c);
  team.receive();
  team.fold(Sum(), v);
  double mass, moment;
  sum_of_table(team, row().hi, row().top, c, &mass, &moment);
  return sums_of(double(v[0]), mass, moment * kLn2);
}

// 3. In logits: of x - top, and of its square; `of_masses`: of exp(2 y) relative to the top, instead of the square.
struct Spread {
  double n, sum, squares;
};

FD_CALLED Spread pass_of_spread(Team team, float c, bool of_masses) {
  const Table table = memory().table;
  const float hi = row().hi, top = row().top;
  const float bottom = bottom_unmasked(row().bottom(), top, row().slice.dtype);
  int64_t v[1] = {0};
  each_batch<true>(bottom, [&](int, const float (&x)[kEach], double* sum, double* squares) {
    float d[kEach], d2[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const bool in = x[j] >= bottom && x[j] <= hi;
      d[j] = in ? x[j] - top : 0.0f;
      d2[j] = !of_masses ? d[j] * d[j] : in ? exp2_of(fmaxf(d[j] * (2 * c), kLeast)) : 0.0f;
      v[0] += in;
    }
    *sum = double(sum_of_8(d)), *squares = double(sum_of_8(d2));
    if (!(*squares < INFINITY)) {  // logits near the lowest float, as masks use them: only double holds their squares
      *sum = *squares = 0;
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const double e = x[j] >= bottom && x[j] <= hi ? double(x[j]) - double(top) : 0.0;
        *sum += e, *squares += e * e;
      }
    }
  });
  int64_t (*part)[kSlots] = team.leave_part(Sum(), v);
  team.promise_all(1 + chunks_posted());
  team.post_numbers<1>(Sum(), part);
  post_chunks(team, [&](int local, bool is, double* a, double* b) {
    if (is) *a = table.mass[local], *b = table.moment[local];
  });
  team.receive();
  team.fold(Sum(), v);
  Spread spread{double(v[0]), 0, 0};
  sum_of_chunks(team, &spread.sum, &spread.squares);
  change([](Row& row) { row.masses_c = 0; });
  return spread;
}

}  // namespace cuda
}  // namespace fastdecode
