// What: one row from logits to masked logits, or to tokens and statistics: measure, search, narrow, draw, record.
// Contract: args.h, with addresses of the device. Rows with a NaN or without a finite logit are flagged, +inf tokens share all mass.
//   out may be the logits.
// Idea: 1. the row comes in once; 2. the plan's cuts; 3. what is told about the whole row; 4. the draw, or the masked row. No block
//   reads another's memory, and each has received all that was posted to it: so it may end when it likes.
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

// Whole chunks.
FD_BOTH int groups_per_block(int64_t limit, int ranks) {
  return (chunks_in(groups_of(limit)) + ranks - 1) / ranks * kChunkGroups;
}

FD_BOTH int64_t bytes_held(int64_t limit, int dtype, int ranks) {
  return int64_t(groups_per_block(limit, ranks)) / kAhead * bytes_of_batch(bytes_of(dtype));
}

// The shared memory of one block.
FD_BOTH int64_t bytes_of_block(int64_t limit, int dtype, int ranks, bool resident) {
  Room room{nullptr, 0, false};
  lay_out(room, groups_of(limit), groups_per_block(limit, ranks), ranks, resident ? bytes_held(limit, dtype, ranks) : 0);
  return room.used;
}

// Row r's cuts, at the temperature whose turn it is.
FD_DEVICE const Cut* cuts_of(const Plan& plan, int64_t r) {
  return plan.count <= kCuts ? memory().cuts : plan.cuts + r * plan.row_stride + row().turn * plan.count;
}

// Called before a barrier of the block.
FD_DEVICE void read_cuts(const Plan& plan, int turn) {
  if (plan.count > kCuts) return;
  const float* const from = reinterpret_cast<const float*>(plan.cuts + row_of_grid() * plan.row_stride + turn * plan.count);
  float* const to = reinterpret_cast<float*>(memory().cuts);
  for (int i = thread(); i < plan.count * kFields; i += threads()) to[i] = from[i];
}

FD_DEVICE Team start(const Logits& logits, const Plan& plan, const Launch& launch) {
  Room room{shared_memory(), 0, true};
  const int groups = groups_of(logits.limit), per_block = groups_per_block(logits.limit, ranks());
  const Memory its = lay_out(room, groups, per_block, ranks(),
                             launch.resident ? bytes_held(logits.limit, logits.dtype, ranks()) : 0);
  Slice slice;
  slice.row = static_cast<const char*>(logits.base) + row_of_grid() * logits.row_stride * bytes_of(logits.dtype);
  slice.dtype = logits.dtype;
  slice.limit = logits.limit;
  slice.held_at = launch.resident ? int(its.held - shared_memory()) : 0;
  slice.groups = groups;
  slice.per_block = per_block;
  slice.first = rank() * per_block < groups ? rank() * per_block : groups;
  slice.end = slice.first + per_block < groups ? slice.first + per_block : groups;
  slice.overflow = false;
  const Batches mine = batches_of_warp(slice);
  slice.ask(its.loads, mine.first, mine.end);
  if (thread() == 0) {
    if (ranks() > 1) {
      init_bar(its.mail->bars, ranks()), init_bar(its.mail->bars + 1, ranks());
      publish_bars();
    }
    its.row->slice = slice;
    its.row->turn = 0, its.row->seed = launch.seed, its.row->step = launch.step;
  }
  if (lane() == 0) its.mail->turns[warp()] = 0;
  if (ranks() > 1) arrive_at_cluster();  // and wait before the first word is posted
  sync_block();
  read_cuts(plan, 0);
  sync_block();
  return {};
}

// The cuts of a plan but for the last one, which is the draw, at the temperature whose turn it is. A greedy row has nothing left
// to cut.
FD_CALLED void run_plan(Team team, const Plan& plan) {
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

  // A lane's tokens of a group, those of them that exist. `t` is the type.
  template <int t>
  FD_MEMBER void put(int group, const float (&x)[kEach]) const {
    const bool whole = reinterpret_cast<uintptr_t>(base) % 16 == 0 && int64_t(group + 1) * kGroupSize <= vocab;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const float a = x[4 * q], b = x[4 * q + 1], c = x[4 * q + 2], d = x[4 * q + 3];
      const int64_t id = id_of(group, 4 * q);
      char* const to = base + id * bytes_of(t);
      if (!whole) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (id + k < vocab) store_from_float(base, t, id + k, x[4 * q + k]);
      } else if (t == kFloat32) {
        store_chunk(to, {{bits_of_float(a), bits_of_float(b), bits_of_float(c), bits_of_float(d)}});
      } else {
        store_half(to, {{half<t>(a) | uint32_t(half<t>(b)) << 16, half<t>(c) | uint32_t(half<t>(d)) << 16}});
      }
    }
  }

 private:
  template <int t>
  FD_MEMBER static uint16_t half(float x) {
    return t == kFloat16 ? to_f16(x) : to_bf16(x);
  }
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
template <int dtype>
FD_CALLED void write_row(const TruncateArgs& args, bool empty, int64_t only) {
  const Output out = output_of(args);
  const Slice slice = row().slice;
  const float bottom = empty ? INFINITY : row().bottom(), hi = row().hi, t = divisor_of(args),
              filter = args.filter_value, largest = largest_of(out.dtype);
  const Batches mine = batches_of_warp(slice);
  for (int g = slice.first + kAhead * mine.first; g < slice.first + kAhead * mine.end && g < slice.end; ++g) {
    float x[kEach];
    slice.load<dtype>(g, x);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      bool stays = x[j] >= bottom && x[j] <= hi;
      if (only >= 0) stays = id_of(g, j) == only;
      x[j] = !stays ? filter : slice.overflow ? INFINITY : divided(x[j], t, largest);
    }
    out.put<dtype>(g, x);
  }
  float nothing[kEach];
#pragma unroll
  for (int j = 0; j < kEach; ++j) nothing[j] = filter;
  for (int g = slice.groups + rank() * warps() + warp(); g < groups_of(out.vocab); g += ranks() * warps())
    out.put<dtype>(g, nothing);
}

FD_DEVICE void write_row(const TruncateArgs& args, bool empty, int64_t only) {
  with_type(args.logits.dtype, [&](auto type) { write_row<decltype(type)::value>(args, empty, only); });
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
  Team team = start(args.logits, args.plan, launch);
  const Status status = open(team, first_scale(cuts_of(args.plan, row_of_grid()), false));
  if (status == kNan) {
    write_nan_row(args);
  } else {
    int64_t only = -1;
    if (status == kOk) {
      run_plan(team, args.plan);
      if (cuts_of(args.plan, row_of_grid())[args.plan.count - 1].temperature == 0) only = first_id_of(team, largest(team));
    }
    write_row(args, status == kEmpty, only);
  }
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
FD_CALLED void describe(Team team, const SampleArgs& args) {
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
FD_CALLED void draw_greedily(Team team, const SampleArgs& args) {
  const int64_t n = args.num_samples, token = first_id_of(team, largest(team)), first = place_of(args) * n;
  for (int64_t s = first + thread(); s < first + n && rank() == 0; s += threads()) {
    args.tokens[s] = token, args.logprobs[s] = 0;
    if (args.raw_logprobs) args.raw_logprobs[s] = float(double(row().top) - double(row().max) - row().ln_raw);
  }
}

// 4. What is known of a token is written by the block that finds it.
FD_CALLED void draw_tokens(Team team, const SampleArgs& args) {
  const float c = scale_of(temperature_of(args));
  fix_top(team, c);
  bool fresh = row().masses_c != c;
  const int64_t counted = fresh ? visit_survivors(c) : 0;
  const int64_t r = row_of_grid(), n = args.num_samples;
  Coordinates at;
  at.seed = uint64_t(coordinate_of(args.seed, row().seed, r));
  at.step = uint64_t(coordinate_of(args.step, row().step, r));
  at.stream = uint64_t(coordinate_of(args.stream, r, r));
  for (Samples samples{0, 0}; samples.first < n; samples.first += samples.n, fresh = false) {
    samples.n = n - samples.first < kTogether ? int(n - samples.first) : kTogether;
    const Groups found = winning_groups(team, at, c, samples, fresh, counted);
    if (fresh)
      change([&](Row& row) { row.sums = found.sums, row.n = int64_t(found.sums.n), row.sums_c = row.masses_c = c; });
    for (int s = 0; s < samples.n; ++s) {
      const int64_t to = place_of(args) * n + samples.first + s;
      const int group = int(found.of[s]);
      if (group == kMaxGroups) {  // no group has mass: see sample_once
        if (!speaks()) continue;
        args.tokens[to] = -1, args.logprobs[to] = NAN;
        if (args.raw_logprobs) args.raw_logprobs[to] = NAN;
        continue;
      }
      if (group / row().slice.per_block != rank()) continue;
      const Token token = winning_token(team, at_sample(at, kToken, samples.first + s), c, group);
      if (thread() != 0) continue;
      args.tokens[to] = token.id;
      const double d = double(token.x) - double(row().top);
      args.logprobs[to] = float(d / temperature_of(args) - log(row().sums.mass));
      if (args.raw_logprobs) args.raw_logprobs[to] = float(double(token.x) - double(row().max) - row().ln_raw);
    }
  }
}

// Everything about the row at the temperature whose turn it is.
FD_CALLED void sample_once(Team team, const SampleArgs& args) {
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
  Team team = start(args.logits, args.plan, launch);
  const Status status = open(team, opening_scale(args));
  if (status != kOk) return flag_row(args, row_of_grid(), status);
  for (;;) {
    sample_once(team, args);
    if (row().turn + 1 == args.temperatures) break;
    sync_block();
    read_cuts(args.plan, row().turn + 1);
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
}

}  // namespace cuda
}  // namespace fastdecode
