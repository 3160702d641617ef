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
FD_CALLED int winning_group(Team& team, Coordinates at, float c) {
  const Table table = memory().table;
  const int groups = row().slice.groups;
  const float hi = row().hi, top = row().top;
  int64_t best[1] = {-1}, where[1] = {-int64_t(kMaxGroups)};
  for (int g = thread(); g < groups; g += threads()) {
    if (!(table.mass[g] > 0)) continue;
    const double mass = table.mass[g] * double(exp2_of(scaled(fminf(table.max[g], hi), top, c)));
    const int64_t score = bits_of_score(mass / exponential_of(words_of(at, uint32_t(g) >> 2).w[g & 3]));
    if (score > best[0]) best[0] = score, where[0] = -g;
  }
  team.table_in_use = true;
  const int64_t mine = best[0];
  team.over_block(Most(), best);
  if (mine != best[0]) where[0] = -int64_t(kMaxGroups);
  team.over_block(Most(), where);
  return int(-where[0]);
}

struct Token {
  int64_t id;
  float x;  // its logit
};

// 2. For the threads of one warp.
FD_CALLED Token winning_token(Team& team, Coordinates at, float c, int group) {
  float x[kEach];
  row().slice.load_any(group, x);
  const float bottom = row().bottom(), hi = row().hi, top = row().top;
  float logit = 0;
  int64_t best[1] = {-1}, where[1] = {-kMaxVocab};
#pragma unroll
  for (int quad = 0; quad < kEach / 4; ++quad) {
    const int64_t id = int64_t(group) * kGroupSize + lane() * kEach + quad * 4;
    const Words words = words_of(at, uint32_t(id >> 2));
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float one = x[quad * 4 + k];
      if (!(one >= bottom && one <= hi)) continue;
      const double w = double(exp2_of(scaled(one, top, c)));
      const int64_t score = bits_of_score(w / exponential_of(words.w[k]));
      if (score > best[0]) best[0] = score, where[0] = -(id + k), logit = one;
    }
  }
  const int64_t mine = best[0], my_place = where[0];
  team.over_warp(Most(), best);
  if (mine != best[0]) where[0] = -kMaxVocab;
  team.over_warp(Most(), where);
  const int from = __builtin_ffs(int(ballot(my_place == where[0]))) - 1;
  return {-where[0], shuffle(logit, from)};
}

// The lowest id whose logit is `x`, which must lie in the row.
FD_CALLED int64_t first_id_of(Team& team, float x) {
  int64_t v[1] = {-kMaxVocab};
  each_group(x, [&](int g, const float (&logits)[kEach]) {
#pragma unroll
    for (int j = kEach - 1; j >= 0; --j) {
      const int64_t id = int64_t(g) * kGroupSize + lane() * kEach + j;
      if (logits[j] == x && -id > v[0]) v[0] = -id;
    }
  });
  team.over_cluster(Most(), v);
  return -v[0];
}

// 3. The second largest logit of the row.
FD_CALLED float runner_up(Team& team) {
  const float* const maxima = memory().table.max;
  const int groups = row().slice.groups;
  const float max = row().max;
  int64_t v[2] = {0, 0};  // tokens at the maximum, key of the largest below it
  each_group(max, [&](int, const float (&x)[kEach]) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const bool most = x[j] == max;
      v[0] += most;
      const int64_t key = most ? 0 : int64_t(key_of(x[j]));
      v[1] = v[1] > key ? v[1] : key;
    }
  });
  for (int g = thread(); g < groups; g += threads()) {
    const int64_t key = maxima[g] == max ? 0 : int64_t(key_of(maxima[g]));
    v[1] = v[1] > key ? v[1] : key;
  }
  team.over_cluster(SumThenMost<1>(), v);
  return v[0] > 1 ? max : v[1] ? float_of_key(uint32_t(v[1])) : -INFINITY;
}

// 3. The `top` largest log-probabilities at temperature 1, lower id first on ties.
FD_CALLED void best_of_row(Team& team, int64_t top, float* logprobs, int64_t* ids) {
  change([](Row& row) { row.reopen(); });
  const float bound = nth_largest(team, double(top));
  const List list = memory().list;
  const Slice slice = row().slice;
  const int64_t alive = row().alive;
  const float max = row().max;
  const double ln_mass = row().ln_raw;
  auto put = [&](int64_t place, float x, int64_t id) {
    logprobs[place] = float(double(x) - double(max) - ln_mass), ids[place] = id;
  };
  const bool fits = top <= kList && (row().list_covers() || gather(team, bound) <= kList);
  int64_t filled = 0;
  if (fits) {
    const int64_t n = row().listed;
    for (int i = thread(); i < n; i += threads()) {
      const float x = list.x[i];
      const int id = list.id[i];
      if (!(x >= bound)) continue;
      int64_t place = 0;
      for (int j = 0; j < n; ++j) place += list.x[j] > x || (list.x[j] == x && list.id[j] < id);
      if (rank() == 0 && place < top) put(place, x, id);
    }
    filled = alive < top ? alive : top;
  }
  // Many wanted, or many tied; and fewer alive than wanted, where those of -inf follow: one after the other.
  float last_x = filled ? -INFINITY : INFINITY;
  int64_t last_id = -1;
  for (; filled < top; ++filled) {
    int64_t v[1] = {0};  // key, then the id backwards
    for (int g = slice.first + warp(); g < slice.end; g += warps()) {
      float x[kEach];
      slice.load(g, x);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int64_t id = int64_t(g) * kGroupSize + lane() * kEach + j;
        if (id >= slice.limit || !(x[j] < last_x || (x[j] == last_x && id > last_id))) continue;
        const int64_t packed = int64_t(key_of(x[j]) >> 1) << 32 | int64_t(key_of(x[j]) & 1) << 31 | (kMaxVocab - id);
        v[0] = v[0] > packed ? v[0] : packed;
      }
    }
    team.over_cluster(Most(), v);
    last_x = float_of_key(uint32_t(v[0] >> 32) << 1 | uint32_t(v[0] >> 31 & 1));
    last_id = kMaxVocab - (v[0] & 0x7fffffff);
    if (rank() == 0 && thread() == 0) put(filled, last_x, last_id);
  }
}

}  // namespace cuda
}  // namespace fastdecode
