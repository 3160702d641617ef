// What: one row from logits to masked logits, or to tokens and statistics.
// Contract: args.h; rows with a NaN or without a finite logit are flagged, +inf tokens share all mass.
// Idea: open the row; run the cuts; write the masked row, or draw and add the statistics that were asked for.
// Who does what: one thread, one row, one workspace. Numbers: statistics in double, stored as float.
// Randomness: see draw.inl. Cost: see cuts.inl and draw.inl; a masked row is written once. Limits: none.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../args.h"
#include "../cut.h"
#include "../dtype.h"
#include "../philox.h"
#include "cuts.inl"
#include "draw.inl"
#include "exp2.inl"
#include "narrow.inl"
#include "open.inl"
#include "row.inl"
#include "simd.inl"
#include "survivors.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

static const Cut* cuts_of(const Plan& plan, int64_t r) { return plan.cuts + r * plan.row_stride; }

// Where the masked logits are written.
struct Output {
  char* base;
  int dtype;

  void put(int64_t i, float x) const { store_from_float(base, dtype, i, x); }

  void put(int64_t first, const float* x, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) put(first + i, x[i]);
  }

  // 2 kLanes of them, as Lanes::pair gives them.
  template <int kType>
  void put_pair(int64_t first, const V* two) const {
    if (kType == kFloat32) {
      float* const at = reinterpret_cast<float*>(base) + first;
      return store(at, two[0]), store(at + kLanes, two[1]);
    }
    uint16_t* const at = reinterpret_cast<uint16_t*>(base) + first;
    if (kType == kBFloat16) return store_bf16_by_parity(at, two);
    store_f16(at, two[0]), store_f16(at + kLanes, two[1]);
  }

  void fill(int64_t first, int64_t end, float x) const {
    if (dtype == kFloat32) {
      for (int64_t i = first; i < end; ++i) reinterpret_cast<float*>(base)[i] = x;
      return;
    }
    const uint16_t h = dtype == kFloat16 ? to_f16(x) : to_bf16(x);
    for (int64_t i = first; i < end; ++i) reinterpret_cast<uint16_t*>(base)[i] = h;
  }
};

// x / t inside the interval, `filter` outside, in the type of the row: `out` may be the row itself.
static void write_interval(const Row& row, const Output& out, Interval interval, float t, float filter) {
  alignas(64) float written[kGroupSize];
  const float bottom = interval.bottom(), inverse = 1 / t;
  const V smallest = broadcast(-largest_of(row.dtype));  // see divided()
  int exponent;
  // A power of two: a product with the inverse is the same number as the quotient, and quicker.
  const bool exact = frexpf(t, &exponent) == 0.5f && inverse < INFINITY;
  const V removed = broadcast(filter != filter ? NAN : filter);
  row.each(-INFINITY, [&](int64_t g, auto x) FD_INLINE {
    const int64_t first = g * kGroupSize;
    for (int i = 0; i < kGroupSize; i += 2 * kLanes) {
      V two[2];
      x.pair(i, two);
      for (V& v : two) {
        const V scaled = max_of(-max_of(-(exact ? v * inverse : v / t), smallest), smallest);
        v = select(Interval::has(v, bottom, interval.hi), scaled, removed);
      }
      if (x.kPadded)
        store(written + i, two[0]), store(written + i + kLanes, two[1]);
      else
        out.put_pair<x.kType>(first + i, two);
    }
    if (x.kPadded) out.put(first, written, row.limit - first);
  });
}

static void truncate_row(const TruncateArgs& args, int64_t r, const Workspace& ws) {
  const Logits& logits = args.logits;
  const Cut* cuts = cuts_of(args.plan, r);
  const float last = cuts[args.plan.count - 1].temperature, t = last == 0 ? 1.0f : last;
  const Output out{static_cast<char*>(args.out) + r * args.out_row_stride * bytes_of(logits.dtype), logits.dtype};
  const Row source{static_cast<const char*>(logits.base) + r * logits.row_stride * bytes_of(logits.dtype), logits.dtype,
                   logits.limit};

  const float largest = largest_of(logits.dtype);
  const Opened opened = open_row(logits, r, ws);
  if (opened.status == kNan) {  // x / T throughout, so that the NaN stays visible
    for (int64_t i = 0; i < logits.vocab; ++i) out.put(i, divided(source.at(i), t, largest));
    return;
  }
  if (opened.status == kEmpty) return out.fill(0, logits.vocab, args.filter_value);
  Survivors survivors(opened.row, ws, opened.extent, opened.alive);
  for (int i = 0; i + 1 < args.plan.count; ++i) run_cut(survivors, cuts[i]);
  if (last == 0) {
    const int64_t token = first_id_of(opened.row, ws, survivors.top());
    const float x = source.at(token);  // read before anything is written: out may be the logits
    out.fill(0, logits.vocab, args.filter_value);
    out.put(token, x);
  } else if (opened.overflow) {
    for (int64_t i = 0; i < logits.limit; ++i) out.put(i, opened.row.at(i) == 0 ? INFINITY : args.filter_value);
    out.fill(logits.limit, logits.vocab, args.filter_value);
  } else if (survivors.gathered() && survivors.count() < logits.limit / 16) {
    out.fill(0, logits.vocab, args.filter_value);
    for (int64_t i = 0; i < survivors.count(); ++i) out.put(ws.id[i], divided(ws.x[i], t, largest));
  } else {
    write_interval(source, out, survivors.interval(), t, args.filter_value);
    out.fill(logits.limit, logits.vocab, args.filter_value);
  }
}

static void fill(float* to, int64_t n, float value) {
  for (int64_t i = 0; to && i < n; ++i) to[i] = value;
}

static void flag_row(const SampleArgs& args, int64_t r, Status status) {
  const int64_t n = args.num_samples;
  args.status[r] = uint8_t(status);
  args.kept[r] = 0;
  for (int64_t s = 0; s < n; ++s) args.tokens[r * n + s] = -1;
  float* const numbers[] = {args.entropy, args.kept_mass, args.max_prob, args.margin};
  for (float* each : numbers)
    if (each) each[r] = NAN;
  fill(args.logprobs + r * n, n, NAN);
  if (args.raw_logprobs) fill(args.raw_logprobs + r * n, n, NAN);
  if (args.logprobs_of) fill(args.logprobs_of + r * args.ids_per_row, args.ids_per_row, NAN);
  if (!args.top) return;
  if (args.top_logprobs) fill(args.top_logprobs + r * args.top, args.top, NAN);
  for (int64_t k = 0; k < args.top; ++k) args.top_ids[r * args.top + k] = -1;
}

// The second largest logit of the row.
static float runner_up(const Row& row, const Workspace& ws, float max) {
  float second = -INFINITY;
  int64_t maxima = 0;
  for (int64_t g = 0; g < row.groups(); ++g) {
    if (ws.group_max[g] != max) {
      second = fmaxf(second, ws.group_max[g]);
      continue;
    }
    for (int64_t i = g * kGroupSize; i < (g + 1) * kGroupSize && i < row.limit; ++i) {
      const float x = row.at(i);
      if (x == max)
        ++maxima;
      else
        second = fmaxf(second, x);
    }
  }
  return maxima > 1 ? max : second;
}

// The `top` largest log-probabilities, lower id first on ties; `ln_mass` belongs to the row at temperature 1. Or their ids alone.
static void best_of_row(const SampleArgs& args, int64_t r, const Opened& opened, const Workspace& ws, double ln_mass) {
  Survivors everything(opened.row, ws, opened.extent, opened.alive);
  const float bound = nth_largest(everything, double(args.top));
  const int64_t n = gather(opened.row, ws, {bound, INFINITY});
  int64_t filled = 0;
  float* logprobs = args.top_logprobs ? args.top_logprobs + r * args.top : ws.y;
  int64_t* ids = args.top_ids + r * args.top;
  for (int64_t i = 0; i < n; ++i) {  // insertion into a descending list; ids ascend, so equals keep their order
    const float x = ws.x[i];
    int64_t at = filled < args.top ? filled++ : args.top;
    if (at == args.top && !(x > logprobs[at - 1])) continue;
    if (at == args.top) --at;
    for (; at > 0 && logprobs[at - 1] < x; --at) logprobs[at] = logprobs[at - 1], ids[at] = ids[at - 1];
    logprobs[at] = x, ids[at] = ws.id[i];
  }
  for (int64_t i = 0; filled < args.top; ++i)  // fewer finite logits than asked for: the -inf ones follow
    if (opened.row.at(i) == -INFINITY) logprobs[filled] = -INFINITY, ids[filled++] = i;
  for (int64_t k = 0; args.top_logprobs && k < args.top; ++k)
    logprobs[k] = float(double(logprobs[k]) - double(opened.extent.max) - ln_mass);
}

static void sample_opened(const SampleArgs& args, int64_t r, const Opened& opened, const Workspace& ws) {
  if (opened.status != kOk) return flag_row(args, r, opened.status);
  const Cut* cuts = cuts_of(args.plan, r);
  const double t = cuts[args.plan.count - 1].temperature;
  const double max = opened.extent.max;
  const int64_t n = args.num_samples;
  int64_t* tokens = args.tokens + r * n;
  Survivors survivors(opened.row, ws, opened.extent, opened.alive);
  for (int i = 0; i + 1 < args.plan.count; ++i) run_cut(survivors, cuts[i]);

  args.status[r] = kOk;
  double mass = 1;
  if (t == 0) {
    const int64_t token = first_id_of(opened.row, ws, survivors.top());
    for (int64_t s = 0; s < n; ++s) tokens[s] = token;
    fill(args.logprobs + r * n, n, 0.0f);
    args.kept[r] = 1;
  } else {
    const Scale scale = survivors.at(t);
    const Drawer drawer(survivors, opened.row, ws, scale, n);
    const Coordinates at{uint64_t(args.seed.base[r * args.seed.stride]), uint64_t(args.step.base[r * args.step.stride]),
                         0};
    const uint64_t request = args.stream.base ? uint64_t(args.stream.base[r * args.stream.stride]) : uint64_t(r);
    // No finite plan leads here. A plan that was made on a GPU is not checked and may hold any number: then no token is drawn.
    if (!(drawer.mass() > 0)) return flag_row(args, r, kEmpty);
    for (int64_t s = 0; s < n; ++s) {
      tokens[s] = drawer.draw(at, uint64_t(s), request);
      args.logprobs[r * n + s] =
          float((double(opened.row.at(tokens[s])) - double(scale.base)) / t - log(drawer.mass()));
    }
    mass = drawer.mass() * exp((double(scale.base) - max) / t);
    args.kept[r] = survivors.count();
  }

  // The distribution after temperature and before truncation; a greedy row's is one token.
  if (args.entropy || args.kept_mass || args.max_prob || args.margin) {
    const Sums whole = t == 0 ? Sums{1, 1, 0} : survivors.whole_at(t);
    if (args.entropy) args.entropy[r] = float(entropy_of(whole));
    if (args.kept_mass) args.kept_mass[r] = float(fmin(mass / whole.mass, 1.0));
    if (args.max_prob) args.max_prob[r] = float(1 / whole.mass);
    if (args.margin) {
      const double second = t == 0 ? 0 : exp((double(runner_up(opened.row, ws, opened.extent.max)) - max) / t);
      args.margin[r] = float((1 - second) / whole.mass);
    }
  }
  // The distribution at temperature 1, before any rule.
  if (args.raw_logprobs || args.logprobs_of || args.top) {
    const bool measured = args.raw_logprobs || args.logprobs_of || args.top_logprobs;
    const double ln_mass = measured ? log(survivors.whole_at(1).mass) : 0;
    auto raw = [&](int64_t id) { return float(double(opened.row.at(id)) - max - ln_mass); };
    for (int64_t s = 0; args.raw_logprobs && s < n; ++s) args.raw_logprobs[r * n + s] = raw(tokens[s]);
    for (int64_t k = 0; args.logprobs_of && k < args.ids_per_row; ++k)
      args.logprobs_of[r * args.ids_per_row + k] = raw(args.ids[r * args.ids_per_row + k]);
    if (args.top) best_of_row(args, r, opened, ws, ln_mass);
  }
}

// The arguments of row r at its i-th temperature, for row 0 of a batch of one.
static SampleArgs at_temperature(SampleArgs args, const int64_t& r, int64_t i) {
  const int64_t out = r * args.temperatures + i, n = args.num_samples;
  auto shift = [](auto*& base, int64_t by) {
    if (base) base += by;
  };
  args.plan.cuts = cuts_of(args.plan, r) + i * args.plan.count;
  shift(args.seed.base, r * args.seed.stride), shift(args.step.base, r * args.step.stride);
  shift(args.stream.base, r * args.stream.stride);
  if (!args.stream.base) args.stream = {&r, 0};
  shift(args.tokens, out * n), shift(args.logprobs, out * n), shift(args.raw_logprobs, out * n);
  shift(args.kept, out), shift(args.status, out);
  shift(args.entropy, out), shift(args.kept_mass, out), shift(args.max_prob, out), shift(args.margin, out);
  return args;
}

// Several temperatures open the row once: its maximum, its groups' maxima and its specials are the same for all.
static void sample_row(const SampleArgs& args, int64_t r, const Workspace& ws) {
  const Opened opened = open_row(args.logits, r, ws);
  if (args.temperatures == 1) return sample_opened(args, r, opened, ws);
  for (int64_t i = 0; i < args.temperatures; ++i) sample_opened(at_temperature(args, r, i), 0, opened, ws);
}

}  // namespace FD_TARGET
}  // namespace fastdecode
