// The memory one thread works in: grown to the largest row seen, never shared, never cleared.
#pragma once

#include <stdint.h>

#include "../args.h"
#include "../philox.h"
#include "../soft.h"

namespace fastdecode {

struct Workspace {
  int64_t vocab = 0;  // the arrays hold this many tokens and a little more, see kSlop
  int64_t groups = 0;
  float* group_max = nullptr;     // [groups] largest logit of each group of kGroupSize tokens
  double* group_mass = nullptr;   // [groups] sum exp(d) of each group, of the pass that ran last
  double* group_noise = nullptr;  // [groups] exponentials of one sample
  int32_t* run_group = nullptr;   // [groups] the groups that hold gathered survivors, ascending:
  int32_t* run_start = nullptr;   // [groups + 1] their first entry in x, id, w; the last one is the end
  double* run_mass = nullptr;     // [groups] sum exp(d) over those survivors
  float* x = nullptr;             // the gathered tokens, ascending by id: logits,
  int32_t* id = nullptr;          // ids,
  float* y = nullptr;             // (x - max) / T in units of ln 2,
  float* w = nullptr;             // 2^y
  float* key = nullptr;           // for a search: what tokens are ordered by; reordered with
  float* key_w = nullptr;         // their w
  float* key_y = nullptr;         // and y
  float* row = nullptr;           // a row of +inf, rewritten
};

constexpr int64_t kSlop = 64;  // entries that vector stores may write past the end

// A row engine compiled for one instruction set.
struct Target {
  const char* name;
  void (*truncate_row)(const TruncateArgs&, int64_t row, const Workspace&);
  void (*sample_row)(const SampleArgs&, int64_t row, const Workspace&);
  double (*exponential)(const Coordinates&, int64_t index);  // -log(v), for tests of the stream
  float (*read_once)(const float*, int64_t);                 // the largest of n floats: one read, for benchmarks
  float (*exp_pass)(const float*, int64_t);                  // a read, and a sum of exponentials of whole vectors
  void (*embed_columns)(const EmbedArgs&, int64_t row, int64_t first, int64_t n);
};

void embed_by(const Target& target, const EmbedArgs& args, int threads);

extern const Target kBaselineTarget, kAvx2Target, kAvx512Target;

}  // namespace fastdecode
