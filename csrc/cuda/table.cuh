// What: sums of groups: from a lane's tokens to the table of this block, and from there to the whole row.
// Contract: row.cuh. What is left in the table is of this block's groups; what is posted is a part of a round (team.cuh).
// Idea: a batch of 4 groups is added up over a warp at once; a block posts sums of 8 groups each, relative to their own maximum; every
//   block adds those of the row up for itself.
// Who does what: a warp a batch, then a lane a group, then every warp all chunks. Numbers: exponentials in float, 8 of a lane added in
//   float, all else in double, in an order that only ids decide: 256 tokens, 8 groups, 32 chunks at a time.
// Randomness: none. Cost: the reads that each_batch is called for, and no round of its own. Limits: none.
#pragma once

#include "row.cuh"

namespace fastdecode {
namespace cuda {

// Sums over the 8 tokens of a lane that lie in [bottom, hi], relative to `ref`.
struct LaneSums {
  float mass, moment;
  int n;
};

FD_DEVICE LaneSums sums_of_lane(const float (&x)[kEach], float ref, float c) {
  float w[kEach], m[kEach];
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const float y = fmaxf((x[j] - ref) * c, kLeast);
    w[j] = exp2_of(y), m[j] = w[j] * y;
  }
  return {sum_of_8(w), sum_of_8(m), kEach};
}

// A token that is left out weighs 2^-125: it changes no sum that a survivor's group is part of, and no group wins by it.
FD_DEVICE LaneSums sums_of_lane(const float (&x)[kEach], float ref, float c, float bottom, float hi) {
  float w[kEach], m[kEach];
  int n = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const bool in = x[j] >= bottom && x[j] <= hi;
    const float y = fmaxf(((in ? x[j] : -INFINITY) - ref) * c, kLeast);
    w[j] = exp2_of(y);
    m[j] = w[j] * y;
    n += in;
  }
  return {sum_of_8(w), sum_of_8(m), n};
}

// Two numbers of each lane for each group of a batch, added up over the warp and left in this block's table. v: the first number of
// the groups, then the second.
FD_DEVICE void leave_sums(const Table& table, int local, double (&v)[2 * kAhead]) {
  const double sum = sum_8_in_warp(v);
  const int which = lane() / 4;
  if (lane() % 4 == 0) (which < kAhead ? table.mass : table.moment)[local + which % kAhead] = sum;
}

// Calls look(g, x, &a, &b) for those groups of each batch of this warp that may hold a logit at or above `bound`; with `sums`, what it
// puts into a and b is added up over the group and left in the table.
template <int dtype, bool sums, class Look>
FD_DEVICE void each_batch_of(const Slice& slice, float bound, Look look) {
  const Table table = memory().table;
  const Batches mine = batches_of_warp(slice);
#pragma unroll 1
  for (int b = mine.first; b < mine.end; ++b) {
    double v[2 * kAhead] = {0, 0, 0, 0, 0, 0, 0, 0};
    const int g = slice.first + kAhead * b;
    const uint32_t reach = ballot(lane() < kAhead && table.max[g + lane()] >= bound);
    if (reach == (1u << kAhead) - 1) {  // no branch between them: they do not wait for each other
      float x[kAhead][kEach];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) slice.load<dtype>(g + k, x[k]);
#pragma unroll
      for (int k = 0; k < kAhead; ++k) look(g + k, x[k], &v[k], &v[kAhead + k]);
    } else {
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (!(reach >> k & 1)) continue;
        float x[kEach];
        slice.load<dtype>(g + k, x);
        look(g + k, x, &v[k], &v[kAhead + k]);
      }
    }
    if (!sums) continue;
    if (reach)
      leave_sums(table, kAhead * b, v);
    else if (lane() < kAhead)
      table.mass[kAhead * b + lane()] = table.moment[kAhead * b + lane()] = 0;
  }
}

template <bool sums, class Look>
FD_DEVICE void each_batch(float bound, Look look) {
  const Slice slice = row().slice;
  with_type(slice.dtype, [&](auto type) { each_batch_of<decltype(type)::value, sums>(slice, bound, look); });
}

FD_DEVICE void sum_of_octet(double* a, double* b) {
#pragma unroll
  for (int mask = 1; mask < kChunkGroups; mask *= 2) *a += shuffle_xor(*a, mask), *b += shuffle_xor(*b, mask);
}

// Part of a round: of(g, &a, &b) of this block's groups, added up over each chunk, to every block.
template <class Of>
FD_DEVICE void post_chunks(Team team, Of of) {
  const Slice slice = row().slice;
  Pair* const chunks = memory().table.chunks + team.turn() * chunks_in(slice.groups);
  for (int k = thread(); k - lane() < slice.padded(); k += threads()) {
    double a = 0, b = 0;
    of(k < slice.padded() ? k : 0, k < slice.padded(), &a, &b);
    sum_of_octet(&a, &b);
    int64_t bits[2];
    memcpy(bits, &a, 8), memcpy(bits + 1, &b, 8);
    for (int r = lane() % kChunkGroups; r < ranks() && k < slice.padded(); r += kChunkGroups)
      team.post_one(chunks + (slice.first + k) / kChunkGroups, r, chunk_of(bits[0], bits[1]));
  }
}

// After a round: of(chunk, pair, &a, &b) of all chunks of the row. Every warp for itself.
template <class Of>
FD_DEVICE void sum_of_chunks(Team team, Of of, double* a, double* b) {
  const int n = chunks_in(row().slice.groups);
  const Pair* const chunks = memory().table.chunks + (team.turn() ^ 1) * n;
  *a = *b = 0;
  for (int k = lane(); k < n; k += kLanes) {
    double one = 0, other = 0;
    of(k, chunks[k], &one, &other);
    *a += one, *b += other;
  }
  sum_in_warp(a, b);
}

FD_DEVICE void sum_of_chunks(Team team, double* a, double* b) {
  sum_of_chunks(team, [](int, const Pair& pair, double* one, double* other) { *one = pair.mass, *other = pair.moment; },
                a, b);
}

// The table's masses and moments of group `local`, relative to `top`.
FD_DEVICE void relative(const Table& table, const Slice& slice, int local, float hi, float top, float c, double* a,
                        double* b) {
  const double mass = table.mass[local];
  if (!(mass > 0)) return;
  const float y = scaled(fminf(table.max[slice.first + local], hi), top, c);
  const double f = double(exp2_of(y));
  *a = mass * f, *b = (table.moment[local] + mass * double(y)) * f;
}

// Part of a round: the table's sums, over each chunk relative to its own maximum, so that they do not wait for the row's.
FD_DEVICE void post_table(Team team, float hi, float c) {
  const Slice slice = row().slice;
  const Table table = memory().table;
  post_chunks(team, [&](int local, bool is, double* a, double* b) {
    float ref = is ? fminf(table.max[slice.first + local], hi) : -INFINITY;
#pragma unroll
    for (int mask = 1; mask < kChunkGroups; mask *= 2) ref = fmaxf(ref, shuffle_xor(ref, mask));
    if (is && fabsf(ref) < INFINITY) relative(table, slice, local, hi, ref, c, a, b);
  });
}

// After it: those of the row, relative to `top`; moments in units of log2.
FD_DEVICE void sum_of_table(Team team, float hi, float top, float c, double* mass, double* moment) {
  const float* const maxima = memory().table.max;
  sum_of_chunks(
      team,
      [&](int chunk, const Pair& pair, double* a, double* b) {
        if (!(pair.mass > 0)) return;
        float ref = -INFINITY;
#pragma unroll
        for (int k = 0; k < kChunkGroups; ++k) ref = fmaxf(ref, fminf(maxima[chunk * kChunkGroups + k], hi));
        const float y = scaled(ref, top, c);
        const double f = double(exp2_of(y));
        *a = pair.mass * f, *b = (pair.moment + pair.mass * double(y)) * f;
      },
      mass, moment);
}

}  // namespace cuda
}  // namespace fastdecode
