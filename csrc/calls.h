// The arguments of the functions that Python calls, by name and in order.
//
// Python passes groups of numbers, a tuple for each: seed is (number, address, stride). A group is spelled once, here: at(name,
// destination) for each number, in order. bindings.cpp visits the groups of a call to fill the destinations, and to list the names;
// fastdecode/engines/addresses.py compares the names with its own when it is imported. Without that, numbers whose places were
// swapped on one side would be addresses taken for sizes.
#pragma once

#include <stdint.h>

#include "args.h"
#include "cut.h"

namespace fastdecode {

template <class At>
void rows(At& at, Logits& logits, Plan& plan) {
  int64_t plans = 1;
  at.group("rows");
  at("logits", logits.base), at("dtype", logits.dtype), at("rows", logits.rows), at("vocab", logits.vocab);
  at("row_stride", logits.row_stride), at("vocab_limit", logits.limit);
  at("cuts", plan.cuts), at("plans", plans), at("cuts_of_plan", plan.count);
  plan.row_stride = plans == 1 ? 0 : plan.count;  // see across_temperatures
}

// Several temperatures have a plan each, one after the other.
inline void across_temperatures(Plan& plan, int64_t temperatures) { plan.row_stride *= temperatures; }

// A coordinate is a number, or an address and a stride: then the address is not null.
template <class At>
void coordinate(At& at, const char* name, int64_t& number, Coordinate& coordinate) {
  at.group(name);
  at("number", number), at("address", coordinate.base), at("stride", coordinate.stride);
}

template <class At>
void streams(At& at, Coordinate& streams) {
  at.group("streams");
  at("address", streams.base), at("stride", streams.stride);
}

struct Truncation {
  TruncateArgs args;

  template <class At>
  void visit(At& at) {
    rows(at, args.logits, args.plan);
    at.group("output");
    at("out", args.out), at("row_stride", args.out_row_stride), at("filter_value", args.filter_value);
  }
};

struct Sampling {
  SampleArgs args;
  int64_t seed = 0, step = 0;

  template <class At>
  void visit(At& at) {
    rows(at, args.logits, args.plan);
    coordinate(at, "seed", seed, args.seed), coordinate(at, "step", step, args.step), streams(at, args.stream);
    at.group("drawn");
    at("temperatures", args.temperatures), at("num_samples", args.num_samples);
    at("tokens", args.tokens), at("logprobs", args.logprobs), at("kept", args.kept), at("status", args.status);
    at.group("statistics");
    at("raw_logprobs", args.raw_logprobs), at("entropy", args.entropy), at("kept_mass", args.kept_mass);
    at("max_prob", args.max_prob), at("margin", args.margin);
    at("top", args.top), at("top_logprobs", args.top_logprobs), at("top_ids", args.top_ids);
    at("ids_per_row", args.ids_per_row), at("ids", args.ids), at("logprobs_of", args.logprobs_of);
    across_temperatures(args.plan, args.temperatures);
  }
};

struct Softening {
  SoftArgs args;

  template <class At>
  void visit(At& at) {
    rows(at, args.logits, args.plan);
    coordinate(at, "seed", args.one_seed, args.seed), coordinate(at, "step", args.one_step, args.step);
    streams(at, args.stream);
    at.group("noise");
    at("noise", args.noise), at("strength", args.strength), at("tau", args.tau), at("taus", args.taus);
    at("tau_stride", args.tau_stride), at("soft_rows", args.soft_rows), at("straight", args.straight);
    at.group("sampled");
    at("width", args.width), at("candidates", args.candidates), at("num_samples", args.num_samples);
    at("tokens", args.tokens), at("logprobs", args.token_logprobs), at("kept", args.kept), at("status", args.status);
    at.group("mixture");
    at("ids", args.ids), at("weights", args.weights), at("tokens", args.first), at("log_pi", args.log_pi);
    at("noise", args.drawn), at("logprobs", args.density);
  }
};

struct Embedding {
  EmbedArgs args;

  template <class At>
  void visit(At& at) {
    at.group("table");
    at("table", args.table), at("dtype", args.dtype), at("vocab", args.vocab), at("columns", args.columns);
    at("row_stride", args.row_stride);
    at.group("mixture");
    at("rows", args.rows), at("width", args.width), at("ids", args.ids), at("weights", args.weights);
    at("out", args.out);
  }
};

// Which resources a call runs on: the last argument.
struct Threads {
  int threads = 1;

  template <class At>
  void visit(At& at) {
    at.number("threads", threads);
  }
};

}  // namespace fastdecode
