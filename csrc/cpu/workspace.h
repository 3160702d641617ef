// The memory one thread works in: grown to the largest row seen, never shared, never cleared.
#pragma once

#include <stdint.h>

namespace fastdecode {

struct Workspace {
  int64_t vocab = 0;  // the arrays hold this many tokens and a little more, see kSlop
  int64_t groups = 0;
  float* group_max = nullptr;     // [groups] largest logit of each group of kGroupSize tokens
  double* group_mass = nullptr;   // [groups] sum exp(d) of each group, by the pass that ran last (masses.inl)
  double* group_noise = nullptr;  // [groups] exponentials of one sample
  int32_t* run_group = nullptr;   // [groups] the groups that hold gathered survivors, ascending:
  int32_t* run_start = nullptr;   // [groups + 1] their first entry in x, id, w; the last one is the end
  double* run_mass = nullptr;     // [groups] sum exp(d) over those survivors
  float* x = nullptr;             // the gathered tokens, ascending by id: logits,
  int32_t* id = nullptr;          // ids,
  float* y = nullptr;             // (x - base) / T in units of ln 2,
  float* w = nullptr;             // 2^y
  float* key = nullptr;           // for a search: what tokens are ordered by; reordered with
  float* key_w = nullptr;         // their w
  float* key_y = nullptr;         // and y
  float* row = nullptr;           // a row of +inf, rewritten
};

constexpr int64_t kSlop = 64;  // entries that vector stores may write past the end

}  // namespace fastdecode
