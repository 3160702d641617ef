// What: out[r, c] = sum_m weights[r, m] * table[ids[r, m], c] for some columns of a row of soft tokens.
// Contract: args.h; ids lie in [0, vocab) or are -1, which adds the weight itself: 0, or the NaN of a flagged row.
// Idea: a few columns at a time, so that the sums stay in the nearest cache; a mixture of one token is copied.
// Who does what: one thread. Numbers: float sums in the order of the ids, rounded once; copies are bit for bit.
// Randomness: none. Cost: reads width rows of the table, writes one. Limits: none.
#pragma once

#include <stdint.h>
#include <string.h>

#include "../args.h"
#include "../dtype.h"
#include "../mixture.h"
#include "simd.inl"

namespace fastdecode {
namespace FD_TARGET {

constexpr int kColumns = 256;

template <class Load>
static void add_row(float* sums, int64_t n, float weight, Load load_one) {
  for (int64_t c = 0; c < n; ++c) sums[c] += weight * load_one(c);
}

static void embed_columns(const EmbedArgs& args, int64_t r, int64_t first, int64_t n) {
  const int64_t* const ids = args.ids + r * args.width;
  const float* const weights = args.weights + r * args.width;
  const int64_t size = bytes_of(args.dtype);
  char* const out = static_cast<char*>(args.out) + (r * args.columns + first) * size;
  auto row_of = [&](int64_t id) {
    return static_cast<const char*>(args.table) + (id * args.row_stride + first) * size;
  };
  if (ids[0] >= 0 && is_alone(weights, args.width)) {
    memcpy(out, row_of(ids[0]), size_t(n * size));
    return;
  }
  for (int64_t done = 0; done < n; done += kColumns) {
    const int64_t some = n - done < kColumns ? n - done : kColumns;
    alignas(64) float sums[kColumns] = {};
    for (int64_t m = 0; m < args.width; ++m) {
      const float weight = weights[m];
      if (ids[m] < 0) {
        add_row(sums, some, 1.0f, [weight](int64_t) { return weight; });
        continue;
      }
      const char* const row = row_of(ids[m]) + done * size;
      if (args.dtype == kFloat32)
        add_row(sums, some, weight, [at = reinterpret_cast<const float*>(row)](int64_t c) { return at[c]; });
      else if (args.dtype == kFloat16)
        add_row(sums, some, weight,
                [at = reinterpret_cast<const uint16_t*>(row)](int64_t c) { return from_f16(at[c]); });
      else
        add_row(sums, some, weight,
                [at = reinterpret_cast<const uint16_t*>(row)](int64_t c) { return from_bf16(at[c]); });
    }
    for (int64_t c = 0; c < some; ++c) store_from_float(out, args.dtype, done + c, sums[c]);
  }
}

}  // namespace FD_TARGET
}  // namespace fastdecode
