// What crosses the border between Python and an engine: pointers, strides (in elements) and sizes.
#pragma once

#include <stdint.h>

#include "cut.h"

namespace fastdecode {

enum Status { kOk = 0, kNan = 1, kEmpty = 2 };

struct Logits {
  const void* base = nullptr;
  int dtype = 0;
  int64_t rows = 0, vocab = 0, limit = 0;  // tokens are [0, limit); limit <= vocab
  int64_t row_stride = 0;
};

struct Plan {
  const Cut* cuts = nullptr;  // [rows or 1, count]; the last one is the draw
  int count = 0;
  int64_t row_stride = 0;  // in cuts; 0: one plan (or one for each temperature) for all rows
};

// One number for all rows, or one for each (stride in elements).
struct Coordinate {
  const int64_t* base = nullptr;
  int64_t stride = 0;
};

struct TruncateArgs {
  Logits logits;
  Plan plan;
  void* out = nullptr;  // may be the logits themselves
  int64_t out_row_stride = 0;
  float filter_value = 0;
};

// A null pointer: not wanted, and costs nothing. [rows] unless said otherwise.
struct SampleArgs {
  Logits logits;
  Plan plan;
  Coordinate seed, step, stream;
  // The number of plans for each row, one after the other. What is [rows] below is then [rows, temperatures]; top and ids_per_row
  // must be 0, because they ask for what is the same at every temperature.
  int64_t temperatures = 1;
  int64_t num_samples = 1;
  int64_t* tokens = nullptr;  // [rows, num_samples]
  float* logprobs = nullptr;  // [rows, num_samples]
  int64_t* kept = nullptr;
  uint8_t* status = nullptr;
  float* raw_logprobs = nullptr;  // [rows, num_samples]
  float* entropy = nullptr;
  float* kept_mass = nullptr;
  float* max_prob = nullptr;
  float* margin = nullptr;
  int64_t top = 0;
  float* top_logprobs = nullptr;  // [rows, top]; null: only the ids are wanted
  int64_t* top_ids = nullptr;     // [rows, top]
  int64_t ids_per_row = 0;
  const int64_t* ids = nullptr;  // [rows, ids_per_row], in [0, limit)
  float* logprobs_of = nullptr;  // [rows, ids_per_row]
};

enum Noise { kNoNoise = 0, kGumbel = 1, kDirichlet = 2, kMulti = 3 };  // as record.py: NOISES

struct SoftArgs {
  Logits logits;
  Plan plan;  // only the temperature of its draw counts
  Coordinate seed, step, stream;
  int64_t one_seed = 0, one_step = 0;  // for all rows, if those hold no address
  int noise = kNoNoise;
  double strength = 1;           // gumbel: the noise's scale; dirichlet: gamma
  double tau = 1;                // gumbel
  const double* taus = nullptr;  // [rows]: instead of tau
  int64_t tau_stride = 0;
  const bool* soft_rows = nullptr;  // [rows]; null: all. The other rows hold the one token that was drawn
  bool straight = false;            // weights are 1 for the first, 0 for the others
  int64_t width = 0;
  const int64_t* candidates = nullptr;  // [rows, width]; multi: the drawn tokens
  // What the engine found for these rows.
  int64_t num_samples = 1;
  const int64_t* tokens = nullptr;  // [rows, num_samples]
  const float* token_logprobs = nullptr;
  const int64_t* kept = nullptr;
  const uint8_t* status = nullptr;
  // Answers.
  int64_t* ids = nullptr;    // [rows, width]
  float* weights = nullptr;  // [rows, width]
  int64_t* first = nullptr;  // [rows]
  float* log_pi = nullptr;   // [rows, width]
  float* drawn = nullptr;    // [rows, width]
  float* density = nullptr;  // [rows]
};

struct EmbedArgs {
  const void* table = nullptr;  // [vocab, columns]
  int dtype = 0;
  int64_t vocab = 0, columns = 0, row_stride = 0;
  int64_t rows = 0, width = 0;
  const int64_t* ids = nullptr;    // [rows, width], -1 is padding
  const float* weights = nullptr;  // [rows, width]
  void* out = nullptr;             // [rows, columns]
};

}  // namespace fastdecode
