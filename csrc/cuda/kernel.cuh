// What: one row from logits to masked logits, or to tokens and statistics: measure, search, narrow, draw, record.
// Contract: args.h, with addresses of the device. Rows with a NaN or without a finite logit are flagged, +inf tokens share all mass.
//   out may be the logits.
// Idea: 1. the row comes in once; 2. the plan's cuts; 3. what is told about the whole row; 4. the draw, or the masked row.
// Who does what: cluster i of the grid has row i. Numbers: statistics in double, stored as float. Randomness: draw.cuh.
// Cost: one read of the row, and one write if it is masked. Limits: kMaxVocab tokens.
#pragma once

#include "draw.cuh"

namespace fastdecode {
namespace cuda {

// What a launch adds to the arguments.
struct Launch {
  int64_t seed, step;  // where args hold no address for them
  int threads, ranks;  // of a block; blocks of a cluster
  bool resident;       // the row stays in shared memory
};

FD_BOTH int groups_of(int64_t tokens) { return int((tokens + kGroupSize - 1) / kGroupSize); }

FD_BOTH int groups_per_block(int64_t limit, int ranks) { return (groups_of(limit) + ranks - 1) / ranks; }

// The shared memory of one block.
FD_BOTH int64_t bytes_of_block(int64_t limit, int dtype, int ranks, bool resident) {
  Room room{nullptr, 0};
  lay_out(room, groups_of(limit),
          resident ? int64_t(groups_per_block(limit, ranks)) * kGroupSize * bytes_of(dtype) : 0);
  return room.used;
}

FD_DEVICE const Cut* cuts_of(const Plan& plan, int64_t r) { return plan.cuts + r * plan.row_stride; }

FD_DEVICE void start(Row& row, const Logits& logits, int64_t r, const Launch& launch) {
  row.groups = groups_of(logits.limit);
  Slice& slice = row.slice;
  slice.per_block = groups_per_block(logits.limit, ranks());
  Room room{shared_memory(), 0};
  row.memory =
      lay_out(room, row.groups, launch.resident ? int64_t(slice.per_block) * kGroupSize * bytes_of(logits.dtype) : 0);
  row.team = {row.memory.mail, 0, 0, false};
  slice.row = static_cast<const char*>(logits.base) + r * logits.row_stride * bytes_of(logits.dtype);
  slice.dtype = logits.dtype;
  slice.limit = logits.limit;
  slice.held = row.memory.held;
  slice.first = rank() * slice.per_block;
  slice.end = slice.first + slice.per_block < row.groups ? slice.first + slice.per_block : row.groups;
  slice.overflow = false;
  sync_cluster();  // a block's memory may be written by others once it has started, and not before
}

FD_DEVICE void run_plan(Row& row, const Cut* cuts, int count) {
  for (int i = 0; i + 1 < count; ++i) run(row, cuts[i]);
}

// ---- masked logits

struct Output {
  char* base;
  int dtype;
  int64_t vocab;

  FD_MEMBER void put(int64_t id, float x) const { store_from_float(base, dtype, id, x); }

  // A lane's 8 neighbours, those of them that exist.
  FD_MEMBER void put(int group, const float (&x)[kEach]) const {
    const int64_t start = int64_t(group) * kGroupSize + lane() * kEach;
    char* const to = base + start * bytes_of(dtype);
    if (reinterpret_cast<uintptr_t>(base) % 16 != 0 || start + kEach > vocab) {
#pragma unroll
      for (int j = 0; j < kEach; ++j)
        if (start + j < vocab) put(start + j, x[j]);
    } else if (dtype == kFloat32) {
#pragma unroll
      for (int c = 0; c < kEach / 4; ++c)
        store_chunk(to + 16 * c, {{bits_of_float(x[4 * c]), bits_of_float(x[4 * c + 1]), bits_of_float(x[4 * c + 2]),
                                   bits_of_float(x[4 * c + 3])}});
    } else {
      Chunk chunk;
#pragma unroll
      for (int k = 0; k < 4; ++k) chunk.w[k] = half(x[2 * k]) | uint32_t(half(x[2 * k + 1])) << 16;
      store_chunk(to, chunk);
    }
  }

 private:
  FD_MEMBER uint16_t half(float x) const { return dtype == kFloat16 ? to_f16(x) : to_bf16(x); }
};

// x / t where a logit lies in [bottom, hi], or where the id is `only` if that is not -1; `filter` elsewhere.
FD_CALLED void write_row(const Row& row, const Output& out, float bottom, int64_t only, float t, float filter) {
  for (int g = row.slice.first + warp(); g < row.slice.end; g += warps()) {
    float x[kEach];
    row.slice.load(g, x);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      bool stays = x[j] >= bottom && x[j] <= row.hi;
      if (only >= 0) stays = int64_t(g) * kGroupSize + lane() * kEach + j == only;
      x[j] = !stays ? filter : row.slice.overflow ? INFINITY : x[j] / t;
    }
    out.put(g, x);
  }
  float nothing[kEach];
#pragma unroll
  for (int j = 0; j < kEach; ++j) nothing[j] = filter;
  for (int g = row.groups + rank() * warps() + warp(); g < groups_of(out.vocab); g += ranks() * warps())
    out.put(g, nothing);
}

FD_DEVICE void truncate_row(const TruncateArgs& args, const Launch& launch) {
  const int64_t r = row_of_grid();
  const Logits& logits = args.logits;
  const Cut* cuts = cuts_of(args.plan, r);
  const float last = cuts[args.plan.count - 1].temperature, t = last == 0 ? 1.0f : last;
  Row row;
  start(row, logits, r, launch);
  const Output out{static_cast<char*>(args.out) + r * args.out_row_stride * bytes_of(logits.dtype), logits.dtype,
                   logits.vocab};

  const Status status = open(row, first_scale(cuts, args.plan.count, false));
  int64_t only = -1;
  if (status ==
      kNan) {  // x / T throughout, so that the NaN stays visible; each token is read by the thread that writes it
    for (int64_t i = rank() * threads() + thread(); i < logits.vocab; i += int64_t(ranks()) * threads())
      out.put(i, load_as_float(row.slice.row, logits.dtype, i) / t);
  } else {
    if (status == kOk) {
      run_plan(row, cuts, args.plan.count);
      if (last == 0) only = first_id_of(row, row.top);
    }
    write_row(row, out, status == kEmpty ? INFINITY : row.bottom(), only, t, args.filter_value);
  }
  sync_cluster();  // no block may end while another reads its memory
}

// ---- tokens and statistics

FD_DEVICE int64_t coordinate_of(const Coordinate& from, int64_t otherwise, int64_t r) {
  return from.base ? from.base[r * from.stride] : otherwise;
}

FD_DEVICE void fill(float* out, int64_t n, float x) {
  if (!out) return;
  for (int64_t i = thread(); i < n; i += threads()) out[i] = x;
}

FD_CALLED void flag_row(const SampleArgs& args, int64_t r, Status status) {
  if (rank() != 0) return;
  const int64_t n = args.num_samples;
  for (int64_t i = thread(); i < n; i += threads()) args.tokens[r * n + i] = -1;
  for (int64_t i = thread(); i < args.top; i += threads()) args.top_ids[r * args.top + i] = -1;
  fill(args.logprobs + r * n, n, NAN);
  fill(args.raw_logprobs ? args.raw_logprobs + r * n : nullptr, n, NAN);
  fill(args.top_logprobs ? args.top_logprobs + r * args.top : nullptr, args.top, NAN);
  fill(args.logprobs_of ? args.logprobs_of + r * args.ids_per_row : nullptr, args.ids_per_row, NAN);
  float* const numbers[] = {args.entropy, args.kept_mass, args.max_prob, args.margin};
  for (float* each : numbers) fill(each ? each + r : nullptr, 1, NAN);
  if (thread() == 0) args.status[r] = uint8_t(status), args.kept[r] = 0;
}

FD_DEVICE void sample_row(const SampleArgs& args, const Launch& launch) {
  const int64_t r = row_of_grid();
  const Cut* cuts = cuts_of(args.plan, r);
  const double t = cuts[args.plan.count - 1].temperature;
  const bool greedy = t == 0, speaks = rank() == 0 && thread() == 0;
  const bool of_scaled = args.entropy || args.kept_mass || args.max_prob || args.margin;
  const bool of_raw = args.raw_logprobs || args.logprobs_of || args.top;
  const float c = greedy ? 0 : scale_of(t);
  Row row;
  start(row, args.logits, r, launch);

  float first = first_scale(cuts, args.plan.count, true);
  if (first == 0) first = of_scaled && !greedy ? c : of_raw ? scale_of(1) : 0;
  const Status status = open(row, first);
  if (status != kOk) {
    flag_row(args, r, status);
    sync_cluster();
    return;
  }
  const double max = row.max;
  run_plan(row, cuts, args.plan.count);

  Sums whole, raw;
  if (of_scaled && !greedy) whole = whole_at(row, c);
  if (of_raw) raw = whole_at(row, scale_of(1));
  const double ln_raw = of_raw ? log(raw.mass) : 0;

  // The draw. What is known of a token is written by the lane that finds it.
  const int64_t n = args.num_samples;
  double mass = 1;
  if (greedy) {
    const int64_t token = first_id_of(row, row.top);
    for (int64_t s = thread(); s < n && rank() == 0; s += threads()) {
      args.tokens[r * n + s] = token, args.logprobs[r * n + s] = 0;
      if (args.raw_logprobs) args.raw_logprobs[r * n + s] = float(double(row.top) - max - ln_raw);
    }
    row.n = 1;
  } else {
    mass = masses_at(row, c).mass;
    Coordinates at;
    at.seed = uint64_t(coordinate_of(args.seed, launch.seed, r));
    at.step = uint64_t(coordinate_of(args.step, launch.step, r));
    const uint64_t request = uint64_t(coordinate_of(args.stream, r, r));
    for (int64_t s = rank(); s < n; s += ranks()) {
      at.stream = stream_for(kGroup, uint64_t(s), request);
      const int group = winning_group(row, at, c);
      if (warp() != 0) continue;
      at.stream = stream_for(kToken, uint64_t(s), request);
      float x = 0;
      const int64_t token = winning_token(row, at, c, group, &x);
      if (lane() != 0) continue;
      args.tokens[r * n + s] = token;
      args.logprobs[r * n + s] = float((double(x) - double(row.top)) / t - log(mass));
      if (args.raw_logprobs) args.raw_logprobs[r * n + s] = float(double(x) - max - ln_raw);
    }
  }
  if (speaks) args.status[r] = kOk, args.kept[r] = row.n;

  // The distribution after temperature and before truncation; a greedy row's is one token.
  if (of_scaled) {
    const float second = args.margin && !greedy ? runner_up(row) : 0.0f;
    if (greedy) whole.n = 1, whole.mass = 1, whole.moment = 0;
    if (speaks) {
      const double share = greedy ? 1 : mass * exp((double(row.top) - max) / t) / whole.mass;
      if (args.entropy) args.entropy[r] = float(entropy_of(whole));
      if (args.kept_mass) args.kept_mass[r] = float(fmin(share, 1.0));
      if (args.max_prob) args.max_prob[r] = float(1 / whole.mass);
      if (args.margin) args.margin[r] = float((1 - (greedy ? 0.0 : exp((double(second) - max) / t))) / whole.mass);
    }
  }
  // The distribution at temperature 1, before any rule.
  if (args.logprobs_of && rank() == 0)
    for (int64_t k = thread(); k < args.ids_per_row; k += threads()) {
      const int64_t place = r * args.ids_per_row + k, id = args.ids[place];
      // On a GPU nobody has looked whether the ids exist: that would be a synchronisation.
      const bool exists = id >= 0 && id < args.logits.limit;
      args.logprobs_of[place] = exists ? float(double(row.slice.at(id)) - max - ln_raw) : NAN;
    }
  if (args.top) best_of_row(row, args.top, ln_raw, args.top_logprobs + r * args.top, args.top_ids + r * args.top);
  sync_cluster();  // no block may end while another reads its memory
}

}  // namespace cuda
}  // namespace fastdecode
