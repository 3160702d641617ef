// What: the logits of one row, 256 at a time: from global memory once, then from the shared memory of the blocks of its cluster.
// Contract: rows of any alignment and stride; the row's last group is padded with -inf; nothing outside the row is read. Of a row with
//   +inf in it, `overflow` turns +inf to 0 and all else to -inf. out may be the logits: a block writes a group after it read it.
// Idea: a warp has one group at a time, a lane 8 neighbours in it, wherever they come from and whatever their type: sums within a
//   lane are then the same for all. An aligned row is read 16 bytes at a time; a row that is not, in 16 aligned bytes too, and
//   shifted into place.
// Who does what: block r of the cluster has the groups [r * per_block, (r + 1) * per_block). Where those do not fit into shared
//   memory (`held_at` is 0), they are read again from global memory, which the L2 cache answers.
// Numbers: exact. Randomness: none. Cost: one read. Limits: none.
#pragma once

#include "team.cuh"

namespace fastdecode {
namespace cuda {

constexpr int kEach = kGroupSize / kLanes;  // neighbouring tokens of a lane
static_assert(kEach == 8, "sum_of_8, and two quads of noise a lane");

// A lane's tokens as they lie in memory: of 16-bit types, in the first half.
struct Raw {
  uint32_t w[kEach];
};

FD_DECLARED Raw fetch_oddly(const char* row, int dtype, int64_t limit, int group);

struct Slice {
  const char* row;
  int dtype;
  int64_t limit;
  int held_at;                        // where in a block's shared memory its groups are held; 0: they are not
  int groups, per_block, first, end;  // of the row; of a block; this block's
  bool overflow;

  FD_MEMBER bool wide() const { return dtype == kFloat32; }
  FD_MEMBER int64_t bytes() const { return wide() ? 4 : 2; }

  // From global memory. `group` is the same for the whole warp.
  FD_MEMBER Raw fetch(int group) const {
    const int64_t start = int64_t(group) * kGroupSize + lane() * kEach;
    const char* const from = row + start * bytes();
    if (reinterpret_cast<uintptr_t>(row) % 16 || int64_t(group + 1) * kGroupSize > limit)
      return fetch_oddly(row, dtype, limit, group);
    Raw raw{};
    put(raw, 0, load_chunk(from));
    if (wide()) put(raw, 1, load_chunk(from + 16));
    return raw;
  }

  FD_MEMBER void hold(int group, const Raw& raw) const {
    if (!held_at) return;
    char* const to = place(group - first);
    store_chunk(to, {{raw.w[0], raw.w[1], raw.w[2], raw.w[3]}});
    if (wide()) store_chunk(to + 16 * kLanes, {{raw.w[4], raw.w[5], raw.w[6], raw.w[7]}});
  }

  // Of this block, once it was held.
  FD_MEMBER Raw recall(int group) const {
    if (!held_at) return fetch(group);
    return taken_from(place(group - first));
  }

  // Of any block of the cluster.
  FD_MEMBER Raw recall_any(int group) const {
    if (!held_at) return fetch(group);
    const int owner = group / per_block;
    return taken_from(of_rank(place(group - owner * per_block), owner));
  }

  FD_MEMBER void unpack(const Raw& raw, float (&x)[kEach]) const {
    if (wide()) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) x[j] = float_of_bits(raw.w[j]);
    } else if (dtype == kFloat16) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) x[j] = half_of(uint16_t(raw.w[j / 2] >> 16 * (j % 2)));
    } else {
#pragma unroll
      for (int j = 0; j < kEach; ++j) x[j] = float_of_bits(j % 2 ? raw.w[j / 2] & 0xffff0000u : raw.w[j / 2] << 16);
    }
    if (overflow)
#pragma unroll
      for (int j = 0; j < kEach; ++j) x[j] = x[j] == INFINITY ? 0.0f : -INFINITY;
  }

  FD_MEMBER void load(int group, float (&x)[kEach]) const { unpack(recall(group), x); }
  FD_MEMBER void load_any(int group, float (&x)[kEach]) const { unpack(recall_any(group), x); }

  // One logit, from global memory.
  FD_MEMBER float at(int64_t id) const {
    const float x = load_as_float(row, dtype, id);
    return !overflow ? x : x == INFINITY ? 0.0f : -INFINITY;
  }

  FD_MEMBER static void put(Raw& raw, int c, const Chunk& chunk) {
#pragma unroll
    for (int k = 0; k < 4; ++k) raw.w[4 * c + k] = chunk.w[k];
  }

 private:
  FD_MEMBER char* place(int local) const {
    return shared_memory() + held_at + local * kGroupSize * int(bytes()) + 16 * lane();
  }

  FD_MEMBER Raw taken_from(const char* from) const {
    Raw raw{};
    put(raw, 0, load_chunk(from));
    if (wide()) put(raw, 1, load_chunk(from + 16 * kLanes));
    return raw;
  }
};

// Drops the first `off` bytes. Register arrays take no index that is not a constant, hence in steps of 8, 4 and 2.
FD_DEVICE void shift(uint32_t (&w)[kEach + 4], int off) {
  if (off & 8)
#pragma unroll
    for (int k = 0; k + 2 < kEach + 4; ++k) w[k] = w[k + 2];
  if (off & 4)
#pragma unroll
    for (int k = 0; k + 1 < kEach + 4; ++k) w[k] = w[k + 1];
  if (off & 2)
#pragma unroll
    for (int k = 0; k + 1 < kEach + 4; ++k) w[k] = funnel(w[k], w[k + 1], 16);
}

// Wherever the row lies: a group in the middle of it by aligned loads that reach into its neighbours, its first and last ones
// token by token, so that nothing outside the row is read.
FD_CALLED Raw fetch_oddly(const char* row, int dtype, int64_t limit, int group) {
  const int64_t start = int64_t(group) * kGroupSize + lane() * kEach;
  const char* const from = row + start * bytes_of(dtype);
  const int off = int(reinterpret_cast<uintptr_t>(row) % 16);
  const bool wide = dtype == kFloat32, has_next = int64_t(group + 1) * kGroupSize + kEach <= limit;
  Raw raw{};
  if (group > 0 && has_next) {
    uint32_t w[kEach + 4];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const Chunk chunk = c <= (wide ? 2 : 1) ? load_chunk(from - off + 16 * c) : Chunk{{0, 0, 0, 0}};
#pragma unroll
      for (int k = 0; k < 4; ++k) w[4 * c + k] = chunk.w[k];
    }
    shift(w, off);
#pragma unroll
    for (int k = 0; k < kEach; ++k) raw.w[k] = w[k];
    return raw;
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const bool exists = start + j < limit;
    if (wide) {
      raw.w[j] = exists ? reinterpret_cast<const uint32_t*>(from)[j] : 0xff800000u;
    } else {
      const uint32_t h = exists ? reinterpret_cast<const uint16_t*>(from)[j] : dtype == kFloat16 ? 0xfc00u : 0xff80u;
      raw.w[j / 2] = j % 2 ? raw.w[j / 2] | h << 16 : h;
    }
  }
  return raw;
}

}  // namespace cuda
}  // namespace fastdecode
