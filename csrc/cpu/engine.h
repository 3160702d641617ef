// The CPU engine as the binding sees it: rows over threads, one instruction set for the process.
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

#include "../args.h"

namespace fastdecode {

// All write to memory that the caller owns, and return when all rows are done. `threads` is an upper bound.
void truncate(const TruncateArgs& args, int threads);
void sample(const SampleArgs& args, int threads);

void soften(const SoftArgs& args, int threads);
void embed(const EmbedArgs& args, int threads);  // std::out_of_range: an id has no row in the table

// -log(v) of the draw at (seed, step, stream, index), for tests of the stream.
double exponential(uint64_t seed, uint64_t step, uint64_t stream, int64_t index);

// Ceilings for benchmarks: the largest of n floats, and a sum of their exponentials.
float read_once(const float* x, int64_t n);
float exp_pass(const float* x, int64_t n);

std::vector<std::string> targets();        // instruction sets that this machine can run, the best one last
std::string target();                      // the one in use
bool use_target(const std::string& name);  // false: not one of targets()

}  // namespace fastdecode
