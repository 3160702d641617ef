// What: tokens from survivors, by the two-level Gumbel draw of philox.h, and what is told about the row beside them.
// Contract: at least one survivor; lowest id wins a tie. A greedy row takes its largest survivor.
// Idea: 1. the group that wins mass / E with E = -log(v), which is the argmax of log mass + Gumbel noise; 2. in it, the token
//   that wins w / E; 3. statistics, each from sums of the whole row.
// Who does what: sample s is drawn by block s % ranks; its threads share the groups, its first warp the group's tokens.
// Numbers: scores in double. Randomness: coordinates (seed, step, stream; group id, use kGroup) and (...; token id, use kToken).
// Cost: a noise for each group with survivors, and 256, per sample. Limits: none.
#pragma once

#include "narrow.cuh"

namespace fastdecode {
namespace cuda {

FD_DEVICE int64_t bits_of_score(double score) {
  int64_t bits;
  memcpy(&bits, &score, 8);
  return bits;  // of numbers >= 0, in the same order
}

// 1.
FD_CALLED int winning_group(Row& row, const Coordinates& at, float c) {
  const Table& table = row.memory.table;
  int64_t best[1] = {-1}, where[1] = {-int64_t(kMaxGroups)};
  for (int g = thread(); g < row.groups; g += threads()) {
    if (!(table.mass[g] > 0)) continue;
    const double mass = table.mass[g] * double(exp2_of(row.scaled(fminf(table.max[g], row.hi), c)));
    const int64_t score = bits_of_score(mass / exponential_of(words_of(at, uint32_t(g) >> 2).w[g & 3]));
    if (score > best[0]) best[0] = score, where[0] = -g;
  }
  row.team.table_in_use = true;
  const int64_t mine = best[0];
  row.team.over_block(Most(), best);
  if (mine != best[0]) where[0] = -int64_t(kMaxGroups);
  row.team.over_block(Most(), where);
  return int(-where[0]);
}

// 2. For the threads of one warp; *x is the token's logit.
FD_CALLED int64_t winning_token(Row& row, const Coordinates& at, float c, int group, float* logit) {
  float x[kEach];
  row.slice.load(group, x);
  const float bottom = row.bottom();
  int64_t best[1] = {-1}, where[1] = {-kMaxVocab};
#pragma unroll
  for (int quad = 0; quad < kEach / 4; ++quad) {
    const int64_t id = int64_t(group) * kGroupSize + lane() * kEach + quad * 4;
    const Words words = words_of(at, uint32_t(id >> 2));
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float one = x[quad * 4 + k];
      if (!(one >= bottom && one <= row.hi)) continue;
      const double w = double(exp2_of(row.scaled(one, c)));
      const int64_t score = bits_of_score(w / exponential_of(words.w[k]));
      if (score > best[0]) best[0] = score, where[0] = -(id + k), *logit = one;
    }
  }
  const int64_t mine = best[0], my_place = where[0];
  row.team.over_warp(Most(), best);
  if (mine != best[0]) where[0] = -kMaxVocab;
  row.team.over_warp(Most(), where);
  const int from = __builtin_ffs(int(ballot(my_place == where[0]))) - 1;
  *logit = shuffle(*logit, from);
  return -where[0];
}

// The lowest id whose logit is `x`, which must lie in the row.
FD_CALLED int64_t first_id_of(Row& row, float x) {
  int64_t v[1] = {-kMaxVocab};
  row.each_group(x, [&](int g, const float (&logits)[kEach]) {
#pragma unroll
    for (int j = kEach - 1; j >= 0; --j) {
      const int64_t id = int64_t(g) * kGroupSize + lane() * kEach + j;
      if (logits[j] == x && -id > v[0]) v[0] = -id;
    }
  });
  row.team.over_cluster(Most(), v);
  return -v[0];
}

// 3. The second largest logit of the row.
FD_CALLED float runner_up(Row& row) {
  const Table& table = row.memory.table;
  int64_t v[2] = {0, 0};  // tokens at the maximum, key of the largest below it
  row.each_group(row.max, [&](int, const float (&x)[kEach]) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const bool most = x[j] == row.max;
      v[0] += most;
      const int64_t key = most ? 0 : int64_t(key_of(x[j]));
      v[1] = v[1] > key ? v[1] : key;
    }
  });
  for (int g = thread(); g < row.groups; g += threads()) {
    const int64_t key = table.max[g] == row.max ? 0 : int64_t(key_of(table.max[g]));
    v[1] = v[1] > key ? v[1] : key;
  }
  row.team.over_cluster(SumThenMost<1>(), v);
  return v[0] > 1 ? row.max : v[1] ? float_of_key(uint32_t(v[1])) : -INFINITY;
}

// 3. The `top` largest log-probabilities, lower id first on ties; `ln_mass` belongs to the row at temperature 1.
FD_CALLED void best_of_row(Row& row, int64_t top, double ln_mass, float* logprobs, int64_t* ids) {
  row.lo = -INFINITY, row.hi = INFINITY, row.top = row.max, row.n = row.alive, row.sums_c = 0;
  const float bound = nth_largest(row, double(top));
  const List& list = row.memory.list;
  auto put = [&](int64_t place, float x, int64_t id) {
    logprobs[place] = float(double(x) - double(row.max) - ln_mass), ids[place] = id;
  };
  const bool fits = top <= kList && (row.list_covers() || gather(row, bound) <= kList);
  int64_t filled = 0;
  if (fits) {
    const int64_t n = row.listed;
    for (int i = thread(); i < n; i += threads()) {
      const float x = list.x[i];
      const int id = list.id[i];
      if (!(x >= bound)) continue;
      int64_t place = 0;
      for (int j = 0; j < n; ++j) place += list.x[j] > x || (list.x[j] == x && list.id[j] < id);
      if (rank() == 0 && place < top) put(place, x, id);
    }
    filled = row.alive < top ? row.alive : top;
  }
  // Many wanted, or many tied; and fewer alive than wanted, where those of -inf follow: one after the other.
  float last_x = filled ? -INFINITY : INFINITY;
  int64_t last_id = -1;
  for (; filled < top; ++filled) {
    int64_t v[1] = {0};  // key, then the id backwards
    for (int g = row.slice.first + warp(); g < row.slice.end; g += warps()) {
      float x[kEach];
      row.slice.load(g, x);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int64_t id = int64_t(g) * kGroupSize + lane() * kEach + j;
        if (id >= row.slice.limit || !(x[j] < last_x || (x[j] == last_x && id > last_id))) continue;
        const int64_t packed = int64_t(key_of(x[j]) >> 1) << 32 | int64_t(key_of(x[j]) & 1) << 31 | (kMaxVocab - id);
        v[0] = v[0] > packed ? v[0] : packed;
      }
    }
    row.team.over_cluster(Most(), v);
    last_x = float_of_key(uint32_t(v[0] >> 32) << 1 | uint32_t(v[0] >> 31 & 1));
    last_id = kMaxVocab - (v[0] & 0x7fffffff);
    if (rank() == 0 && thread() == 0) put(filled, last_x, last_id);
  }
}

}  // namespace cuda
}  // namespace fastdecode
