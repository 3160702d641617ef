// The row engine as it was compiled for one instruction set: a table of functions. engine.cpp chooses one at run time.
#pragma once

#include <stdint.h>

#include "../args.h"
#include "../philox.h"
#include "workspace.h"

namespace fastdecode {

struct Target {
  const char* name;
  void (*truncate_row)(const TruncateArgs&, int64_t row, const Workspace&);
  void (*sample_row)(const SampleArgs&, int64_t row, const Workspace&);
  double (*exponential)(const Coordinates&, int64_t index);  // -log(v), for tests of the stream
  float (*read_once)(const float*, int64_t);                 // the largest of n floats: one read, for benchmarks
  float (*exp_pass)(const float*, int64_t);                  // a read, and a sum of exponentials of whole vectors
  void (*embed_columns)(const EmbedArgs&, int64_t row, int64_t first, int64_t n);
};

extern const Target kBaselineTarget, kAvx2Target, kAvx512Target;

}  // namespace fastdecode
