// What: the logits of one row, 256 at a time: from global memory once, then from the shared memory of the blocks of its cluster.
// Contract: rows of any alignment and stride; the row's last group is padded with -inf; nothing outside the row is read. Of a row with
//   +inf in it, `overflow` turns +inf to 0 and all else to -inf. out may be the logits: a block writes a group after it read it.
// Idea: a block asks for its whole slice before it does anything else, in batches of 4 groups, each a copy that needs no register
//   (copy_in). A row that does not start on 16 bytes comes as it lies, and the warp that looks at a batch first shifts it into place.
//   The row's ragged ends, and rows that do not fit, are loaded by the lanes. A lane holds two quads of neighbours, 128 apart: so that
//   the lanes of a warp touch every bank of shared memory once, and that four tokens share one Philox call.
// Who does what: block r of the cluster has the groups [r * per_block, (r + 1) * per_block); the batches of a block belong
//   to its warps in order. Where the slices do not fit into shared memory (`held_at` is 0), groups are read again from global memory, which the
//   L2 cache answers.
// Numbers: exact. Randomness: none. Cost: one read. Limits: none.
#pragma once

#include "team.cuh"

namespace fastdecode {
namespace cuda {

constexpr int kEach = kGroupSize / kLanes;  // tokens of a lane in a group
constexpr int kQuads = kEach / 4;
constexpr int kAhead = 4;        // groups of a batch
constexpr int kChunkGroups = 8;  // groups whose sums go from block to block together
static_assert(kChunkGroups % kAhead == 0, "a chunk is of whole batches");
static_assert(kEach == 8, "sum_of_8, and two quads of noise a lane");

// Where the lane's tokens 4 * quad, ... lie in their group.
FD_DEVICE int place_in_group(int quad) { return quad * (kGroupSize / kQuads) + 4 * lane(); }
FD_DEVICE int64_t id_of(int group, int j) { return int64_t(group) * kGroupSize + place_in_group(j / 4) + j % 4; }

FD_BOTH int64_t bytes_of_batch(int64_t bytes) { return kAhead * kGroupSize * bytes + 16; }

// A lane's tokens as they lie in memory: of 16-bit types, in the first half.
struct Raw {
  uint32_t w[kEach];
};

template <int dtype>
FD_DEVICE void unpack(const Raw& raw, float (&x)[kEach]) {
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (dtype == kFloat32)
      x[j] = float_of_bits(raw.w[j]);
    else if (dtype == kFloat16)
      x[j] = half_of(uint16_t(raw.w[j / 2] >> 16 * (j % 2)));
    else
      x[j] = float_of_bits(j % 2 ? raw.w[j / 2] & 0xffff0000u : raw.w[j / 2] << 16);
  }
}

template <int t>
struct Type {
  static constexpr int value = t;
};

// Calls f with the type of a row, which the compiler knows there.
template <class F>
FD_DEVICE void with_type(int dtype, F f) {
  if (dtype == kFloat32)
    f(Type<kFloat32>());
  else if (dtype == kFloat16)
    f(Type<kFloat16>());
  else
    f(Type<kBFloat16>());
}

// Of a row with tokens of +inf.
FD_DEVICE void overflowed(float (&x)[kEach]) {
#pragma unroll
  for (int j = 0; j < kEach; ++j) x[j] = x[j] == INFINITY ? 0.0f : -INFINITY;
}

struct Slice {
  const char* row;
  int64_t limit;
  int dtype;
  int held_at;                        // where in a block's shared memory its groups are held; 0: they are not
  int groups, per_block, first, end;  // of the row; of a block; this block's
  bool overflow;

  FD_MEMBER bool wide() const { return dtype == kFloat32; }
  FD_MEMBER int bytes() const { return wide() ? 4 : 2; }
  FD_MEMBER int off() const { return int(reinterpret_cast<uintptr_t>(row) % 16); }
  // Up to a whole chunk: groups beyond the row are of -inf.
  FD_MEMBER int padded() const { return (end - first + kChunkGroups - 1) / kChunkGroups * kChunkGroups; }
  FD_MEMBER int batches() const { return padded() / kAhead; }

  // Does a batch of this block come by a copy? What lies around the row on its last 16 bytes is not ours to read.
  FD_MEMBER bool is_copied(int batch) const {
    const int64_t start = int64_t(first + kAhead * batch) * kGroupSize * bytes() - off();
    return kHasBars && held_at && start >= 0 && start + bytes_of_batch(bytes()) <= limit * bytes();
  }

  // Asks for batches [begin, stop), which are this warp's. `bars`: one for each batch of the block.
  FD_MEMBER void ask(Bar* bars, int begin, int stop) const {
    if (!kHasBars || !held_at) return;
    if (lane() == 0) {
      for (int b = begin; b < stop; ++b)
        if (is_copied(b)) init_bar(bars + b, 1);
      publish_bars();
      const int n = off() ? int(bytes_of_batch(bytes())) : int(bytes_of_batch(bytes())) - 16;
      for (int b = begin; b < stop; ++b) {
        if (!is_copied(b)) continue;
        promise(bars + b, rank(), n);
        copy_in(place(kAhead * b), row + int64_t(first + kAhead * b) * kGroupSize * bytes() - off(), n, bars + b);
      }
    }
    sync_warp();
  }

  // The groups of a batch of this warp, for the first time; they are held from then on. Those beyond the row are -inf.
  template <int dtype>
  FD_MEMBER void take(int batch, Bar* bars, Raw (&raw)[kAhead]) const {
    constexpr int kBytes = dtype == kFloat32 ? 4 : 2;
    if (is_copied(batch)) {
      await(bars + batch, 0);
      const int shift = off();
#pragma unroll
      for (int k = 0; k < kAhead; ++k) raw[k] = quads<kBytes>(place(kAhead * batch + k), shift);
      if (!shift) return;
      sync_warp();  // all have read: a group moves over the end of the one before it
    } else {
#pragma unroll
      for (int k = 0; k < kAhead; ++k) raw[k] = fetch(first + kAhead * batch + k);
      if (!held_at) return;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) hold<kBytes>(place(kAhead * batch + k), raw[k]);
  }

  // A group of this block, once it was taken.
  FD_MEMBER void load(int group, float (&x)[kEach]) const {
    with_type(dtype, [&](auto type) { load<decltype(type)::value>(group, x); });
  }

  // `t` is the type of the row.
  template <int t>
  FD_MEMBER void load(int group, float (&x)[kEach]) const {
    if (held_at) {
      unpack<t>(quads<t == kFloat32 ? 4 : 2>(place<t>(group - first), 0), x);
    } else {
      unpack<t>(fetch(group), x);
      if (overflow) overflowed(x);
    }
  }

  // Tokens of +inf share all the mass: what is held says so from now on.
  template <int t>
  FD_MEMBER void hold_overflowed(int group, float (&x)[kEach]) const {
    overflowed(x);
    char* const to = place(group - first);
#pragma unroll
    for (int j = 0; j < kEach; ++j) store_from_float(to, t, place_in_group(j / 4) + j % 4, x[j]);
  }

  // One logit of a group of this block.
  FD_MEMBER float held(int group, int i) const {
    if (!held_at) return i < limit - int64_t(group) * kGroupSize ? at(int64_t(group) * kGroupSize + i) : -INFINITY;
    return load_as_float(place(group - first), dtype, i);
  }

  // One logit, from global memory.
  FD_MEMBER float at(int64_t id) const { return clean(load_as_float(row, dtype, id)); }

 private:
  FD_MEMBER float clean(float x) const { return !overflow ? x : x == INFINITY ? 0.0f : -INFINITY; }

  FD_MEMBER char* place(int local) const { return wide() ? place<kFloat32>(local) : place<kBFloat16>(local); }

  template <int t>
  FD_MEMBER char* place(int local) const {
    constexpr int kBytes = t == kFloat32 ? 4 : 2;
    return shared_memory() + held_at + local / kAhead * int(bytes_of_batch(kBytes)) + local % kAhead * kGroupSize * kBytes;
  }

  // A lane's two quads of a group that begins at `from`, `shift` bytes (0 .. 15) further. Register arrays take no index that is not
  // a constant, hence in steps of 8, 4 and 2 bytes.
  template <int kBytes>
  FD_MEMBER static Raw quads(const char* from, int shift) {
    Raw raw{};
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const char* const at = from + place_in_group(q) * kBytes;
      if (kBytes == 4) {
        const Chunk a = load_chunk(at);
        uint32_t w[8] = {a.w[0], a.w[1], a.w[2], a.w[3], 0, 0, 0, 0};
        if (shift) {
          const Chunk b = load_chunk(at + 16);
#pragma unroll
          for (int k = 0; k < 4; ++k) w[4 + k] = b.w[k];
          if (shift & 8)
#pragma unroll
            for (int k = 0; k < 6; ++k) w[k] = w[k + 2];
          if (shift & 4)
#pragma unroll
            for (int k = 0; k < 5; ++k) w[k] = w[k + 1];
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) raw.w[4 * q + k] = w[k];
      } else {
        const Half a = load_half(at + (shift & 8));
        uint32_t w[4] = {a.w[0], a.w[1], 0, 0};
        if (shift & 7) {
          const Half b = load_half(at + (shift & 8) + 8);
          w[2] = b.w[0], w[3] = b.w[1];
          if (shift & 4)
#pragma unroll
            for (int k = 0; k < 3; ++k) w[k] = w[k + 1];
          if (shift & 2)
#pragma unroll
            for (int k = 0; k < 3; ++k) w[k] = funnel(w[k], w[k + 1], 16);
        }
        raw.w[2 * q] = w[0], raw.w[2 * q + 1] = w[1];
      }
    }
    return raw;
  }

  template <int kBytes>
  FD_MEMBER static void hold(char* to, const Raw& raw) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      char* const at = to + place_in_group(q) * kBytes;
      if (kBytes == 4)
        store_chunk(at, {{raw.w[4 * q], raw.w[4 * q + 1], raw.w[4 * q + 2], raw.w[4 * q + 3]}});
      else
        store_half(at, {{raw.w[2 * q], raw.w[2 * q + 1]}});
    }
  }

  // From global memory. `group` is the same for the whole warp.
  FD_MEMBER Raw fetch(int group) const {
    const char* const from = row + int64_t(group) * kGroupSize * bytes();
    if (off() == 0 && int64_t(group + 1) * kGroupSize <= limit) return wide() ? quads<4>(from, 0) : quads<2>(from, 0);
    Raw raw{};
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int i = place_in_group(j / 4) + j % 4;
      const bool exists = int64_t(group) * kGroupSize + i < limit;
      if (wide()) {
        raw.w[j] = exists ? reinterpret_cast<const uint32_t*>(from)[i] : 0xff800000u;
      } else {
        const uint32_t h = exists ? reinterpret_cast<const uint16_t*>(from)[i] : dtype == kFloat16 ? 0xfc00u : 0xff80u;
        raw.w[j / 2] = j % 2 ? raw.w[j / 2] | h << 16 : h;
      }
    }
    return raw;
  }
};

}  // namespace cuda
}  // namespace fastdecode
