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
  bool resident;       // the row stays in shared memory
};

FD_BOTH int groups_of(int64_t tokens) { return int((tokens + kGroupSize - 1) / kGroupSize); }

FD_BOTH int groups_per_block(int64_t limit, int ranks) { return (groups_of(limit) + ranks - 1) / ranks; }

FD_BOTH int64_t bytes_held(int64_t limit, int dtype, int ranks) {
  return int64_t(groups_per_block(limit, ranks)) * kGroupSize * bytes_of(dtype);
}

// The shared memory of one block.
FD_BOTH int64_t bytes_of_block(int64_t limit, int dtype, int ranks, bool resident) {
  Room room{nullptr, 0, false};
  lay_out(room, groups_of(limit), resident ? bytes_held(limit, dtype, ranks) : 0);
  return room.used;
}

// Row r's cuts, at the temperature whose turn it is.
FD_DEVICE const Cut* cuts_of(const Plan& plan, int64_t r) {
  return plan.cuts + r * plan.row_stride + row().turn * plan.count;
}

FD_DEVICE Team start(const Logits& logits, const Launch& launch) {
  Room room{shared_memory(), 0, true};
  const int groups = groups_of(logits.limit);
  const Memory its = lay_out(room, groups, launch.resident ? bytes_held(logits.limit, logits.dtype, ranks()) : 0);
  if (thread() == 0) {
    Slice& slice = its.row->slice;
    slice.row = static_cast<const char*>(logits.base) + row_of_grid() * logits.row_stride * bytes_of(logits.dtype);
    slice.dtype = logits.dtype;
    slice.limit = logits.limit;
    slice.held_at = launch.resident ? int(its.held - shared_memory()) : 0;
    slice.groups = groups;
    slice.per_block = groups_per_block(logits.limit, ranks());
    slice.first = rank() * slice.per_block;
    slice.end = slice.first + slice.per_block < groups ? slice.first + slice.per_block : groups;
    slice.overflow = false;
    its.row->turn = 0, its.row->seed = launch.seed, its.row->step = launch.step;
  }
  sync_cluster();  // a block's memory may be written by others once it has started, and not before
  return {0, 0, false};
}

// The cuts of a plan but for the last one, which is the draw, at the temperature whose turn it is. A greedy row has nothing left
// to cut.
FD_CALLED void run_plan(Team& team, const Plan& plan) {
  for (int i = 0; i + 1 < plan.count; ++i) {
    change([&](Row& row) { row.cut = cuts_of(plan, row_of_grid())[i]; });
    if (row().cut.temperature == 0 || row().n == 1) continue;
    if (int(row().cut.kind) == kFloor)
      narrow(floor_edge(team), INFINITY);
    else
      prefix(team);
  }
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

FD_DEVICE Output output_of(const TruncateArgs& args) {
  const int dtype = args.logits.dtype;
  return {static_cast<char*>(args.out) + row_of_grid() * args.out_row_stride * bytes_of(dtype), dtype,
          args.logits.vocab};
}

// What the survivors are divided by; a greedy row's token stays as it is.
FD_DEVICE float divisor_of(const TruncateArgs& args) {
  const float t = cuts_of(args.plan, row_of_grid())[args.plan.count - 1].temperature;
  return t == 0 ? 1.0f : t;
}

// x / t where a logit survives, or where the id is `only` if that is not -1; `filter` elsewhere.
FD_CALLED void write_row(const TruncateArgs& args, bool empty, int64_t only) {
  const Output out = output_of(args);
  const Slice slice = row().slice;
  const float bottom = empty ? INFINITY : row().bottom(), hi = row().hi, t = divisor_of(args),
              filter = args.filter_value, largest = largest_of(out.dtype);
  for (int g = slice.first + warp(); g < slice.end; g += warps()) {
    float x[kEach];
    slice.load(g, x);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      bool stays = x[j] >= bottom && x[j] <= hi;
      if (only >= 0) stays = int64_t(g) * kGroupSize + lane() * kEach + j == only;
      x[j] = !stays ? filter : slice.overflow ? INFINITY : divided(x[j], t, largest);
    }
    out.put(g, x);
  }
  float nothing[kEach];
#pragma unroll
  for (int j = 0; j < kEach; ++j) nothing[j] = filter;
  for (int g = slice.groups + rank() * warps() + warp(); g < groups_of(out.vocab); g += ranks() * warps())
    out.put(g, nothing);
}

// x / t throughout, so that the NaN stays visible; each token is read by the thread that writes it.
FD_CALLED void write_nan_row(const TruncateArgs& args) {
  const Output out = output_of(args);
  const char* const from = row().slice.row;
  const float t = divisor_of(args), largest = largest_of(out.dtype);
  for (int64_t i = rank() * threads() + thread(); i < out.vocab; i += int64_t(ranks()) * threads())
    out.put(i, divided(load_as_float(from, out.dtype, i), t, largest));
}

FD_DEVICE void truncate_row(const TruncateArgs& args, const Launch& launch) {
  Team team = start(args.logits, launch);
  const Status status = open(team, first_scale(cuts_of(args.plan, row_of_grid()), false));
  if (status == kNan) {
    write_nan_row(args);
  } else {
    int64_t only = -1;
    if (status == kOk) {
      run_plan(team, args.plan);
      if (cuts_of(args.plan, row_of_grid())[args.plan.count - 1].temperature == 0) only = first_id_of(team, row().top);
    }
    write_row(args, status == kEmpty, only);
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

// At all temperatures.
FD_CALLED void flag_row(const SampleArgs& args, int64_t r, Status status) {
  if (rank() != 0) return;
  const int64_t n = args.temperatures * args.num_samples, rows = args.temperatures;
  for (int64_t i = thread(); i < n; i += threads()) args.tokens[r * n + i] = -1;
  for (int64_t i = thread(); i < args.top; i += threads()) args.top_ids[r * args.top + i] = -1;
  for (int64_t i = thread(); i < rows; i += threads())
    args.status[r * rows + i] = uint8_t(status), args.kept[r * rows + i] = 0;
  fill(args.logprobs + r * n, n, NAN);
  fill(args.raw_logprobs ? args.raw_logprobs + r * n : nullptr, n, NAN);
  fill(args.top_logprobs ? args.top_logprobs + r * args.top : nullptr, args.top, NAN);
  fill(args.logprobs_of ? args.logprobs_of + r * args.ids_per_row : nullptr, args.ids_per_row, NAN);
  float* const numbers[] = {args.entropy, args.kept_mass, args.max_prob, args.margin};
  for (float* each : numbers) fill(each ? each + r * rows : nullptr, rows, NAN);
}

FD_DEVICE bool speaks() { return rank() == 0 && thread() == 0; }

// Where it is in the answers [rows, temperatures].
FD_DEVICE int64_t place_of(const SampleArgs& args) { return row_of_grid() * args.temperatures + row().turn; }

FD_DEVICE double temperature_of(const SampleArgs& args) {
  return cuts_of(args.plan, row_of_grid())[args.plan.count - 1].temperature;
}

FD_DEVICE bool of_scaled(const SampleArgs& args) {
  return args.entropy || args.kept_mass || args.max_prob || args.margin;
}

FD_DEVICE bool of_raw(const SampleArgs& args) { return args.raw_logprobs || args.logprobs_of || args.top; }

// The distribution after temperature and before truncation; a greedy row's is one token.
FD_CALLED void describe(Team& team, const SampleArgs& args) {
  const double t = temperature_of(args);
  const bool greedy = t == 0;
  Sums whole;
  whole.n = whole.mass = 1;
  if (!greedy) whole = whole_at(team, scale_of(t));
  const float second = args.margin && !greedy ? runner_up(team) : 0.0f;
  change([&](Row& row) { row.scaled_mass = whole.mass; });
  if (!speaks()) return;
  const int64_t place = place_of(args);
  if (args.entropy) args.entropy[place] = float(entropy_of(whole));
  if (args.max_prob) args.max_prob[place] = float(1 / whole.mass);
  const double ahead = greedy ? 1 : 1 - exp((double(second) - double(row().max)) / t);
  if (args.margin) args.margin[place] = float(ahead / whole.mass);
}

// The first largest token, for every sample.
FD_CALLED void draw_greedily(Team& team, const SampleArgs& args) {
  const int64_t n = args.num_samples, token = first_id_of(team, row().top), first = place_of(args) * n;
  for (int64_t s = first + thread(); s < first + n && rank() == 0; s += threads()) {
    args.tokens[s] = token, args.logprobs[s] = 0;
    if (args.raw_logprobs) args.raw_logprobs[s] = float(double(row().top) - double(row().max) - row().ln_raw);
  }
}

// 4. What is known of a token is written by the lane that finds it.
FD_CALLED void draw_tokens(Team& team, const SampleArgs& args) {
  const float c = scale_of(temperature_of(args));
  masses_at(team, c);
  const int64_t r = row_of_grid(), n = args.num_samples;
  Coordinates at;
  at.seed = uint64_t(coordinate_of(args.seed, row().seed, r));
  at.step = uint64_t(coordinate_of(args.step, row().step, r));
  for (int64_t s = rank(); s < n; s += ranks()) {
    const uint64_t request = uint64_t(coordinate_of(args.stream, r, r));
    at.stream = stream_for(kGroup, uint64_t(s), request);
    const int group = winning_group(team, at, c);
    if (warp() != 0) continue;
    at.stream = stream_for(kToken, uint64_t(s), request);
    const int64_t to = place_of(args) * n + s;
    if (group == kMaxGroups) {  // no group has mass: see sample_once
      if (lane() == 0) args.tokens[to] = -1, args.logprobs[to] = NAN;
      if (lane() == 0 && args.raw_logprobs) args.raw_logprobs[to] = NAN;
      continue;
    }
    const Token token = winning_token(team, at, c, group);
    if (lane() != 0) continue;
    args.tokens[to] = token.id;
    const double d = double(token.x) - double(row().top);
    args.logprobs[to] = float(d / temperature_of(args) - log(row().sums.mass));
    if (args.raw_logprobs) args.raw_logprobs[to] = float(double(token.x) - double(row().max) - row().ln_raw);
  }
}

// Everything about the row at the temperature whose turn it is.
FD_CALLED void sample_once(Team& team, const SampleArgs& args) {
  run_plan(team, args.plan);
  if (of_scaled(args)) describe(team, args);
  if (of_raw(args) && row().ln_raw != row().ln_raw) {
    const double ln_raw = log(whole_at(team, scale_of(1)).mass);
    change([&](Row& row) { row.ln_raw = ln_raw; });
  }
  const bool greedy = temperature_of(args) == 0;
  if (greedy)
    draw_greedily(team, args);
  else
    draw_tokens(team, args);
  if (!speaks()) return;
  const int64_t place = place_of(args);
  // No finite plan leaves no mass. But nobody has looked at parameters on a GPU, and what is drawn is a token of the row, or none.
  const bool drawn = greedy || row().sums.mass > 0;
  args.status[place] = drawn ? kOk : kEmpty, args.kept[place] = greedy ? 1 : drawn ? row().n : 0;
  if (!args.kept_mass) return;
  const double from_top = exp((double(row().top) - double(row().max)) / temperature_of(args));
  args.kept_mass[place] = greedy ? 1.0f : float(fmin(row().sums.mass * from_top / row().scaled_mass, 1.0));
}

// The scale of the sums that come out of the read; 0: none.
FD_DEVICE float opening_scale(const SampleArgs& args) {
  const float first = first_scale(cuts_of(args.plan, row_of_grid()), true);
  if (first != 0) return first;
  const double t = temperature_of(args);
  return of_scaled(args) && t != 0 ? scale_of(t) : of_raw(args) ? scale_of(1) : 0;
}

FD_DEVICE void sample_row(const SampleArgs& args, const Launch& launch) {
  Team team = start(args.logits, launch);
  const Status status = open(team, opening_scale(args));
  if (status != kOk) {
    flag_row(args, row_of_grid(), status);
    sync_cluster();
    return;
  }
  for (;;) {
    sample_once(team, args);
    if (row().turn + 1 == args.temperatures) break;
    change([](Row& row) { row.reopen(), ++row.turn; });
  }

  // The distribution at temperature 1, before any rule.
  const int64_t r = row_of_grid();
  if (args.logprobs_of && rank() == 0)
    for (int64_t k = thread(); k < args.ids_per_row; k += threads()) {
      const int64_t place = r * args.ids_per_row + k, id = args.ids[place];
      // On a GPU nobody has looked whether the ids exist: that would be a synchronisation.
      const bool exists = id >= 0 && id < args.logits.limit;
      args.logprobs_of[place] = exists ? float(double(row().slice.at(id)) - double(row().max) - row().ln_raw) : NAN;
    }
  if (args.top) best_of_row(team, args.top, args.top_logprobs + r * args.top, args.top_ids + r * args.top);
  sync_cluster();  // no block may end while another reads its memory
}

}  // namespace cuda
}  // namespace fastdecode
