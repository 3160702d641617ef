// What: the ceilings that bench/ measures the engine against: one read of a row, and one read with an exponential for each token.
// Contract: float32, contiguous. Idea: the loops of the engine without what a cut needs. Who does what: one thread. Numbers: float.
// Randomness: none. Cost: that is what they are for. Limits: exp_pass leaves out the tokens behind the last whole step.
#pragma once

#include <math.h>
#include <stdint.h>

#include "exp2.inl"
#include "row.inl"
#include "simd.inl"

namespace fastdecode {
namespace FD_TARGET {

static float read_once(const float* x, int64_t n) {
  V best[4] = {broadcast(-INFINITY), broadcast(-INFINITY), broadcast(-INFINITY), broadcast(-INFINITY)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int k = 0; k < 4; ++k) best[k] = max_of(best[k], load(x + i + k * kLanes));
  float largest = reduce_max(max_of(max_of(best[0], best[1]), max_of(best[2], best[3])));
  for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

static float exp_pass(const float* x, int64_t n) {
  const Weights<kVanishing> weights({scale_of(1), read_once(x, n)});
  V sums[2]{};
  for (int64_t i = 0; i + kStep * kLanes <= n; i += kStep * kLanes) {
    V v[kStep], d[kStep], w[kStep];
    for (int k = 0; k < kStep; ++k) v[k] = load(x + i + k * kLanes);
    weights.of<kStep, false>(v, d, w);
    for (int k = 0; k < kStep; ++k) sums[k % 2] += w[k];
  }
  return float(reduce_sum(pairs_of(sums[0] + sums[1])));
}

}  // namespace FD_TARGET
}  // namespace fastdecode
