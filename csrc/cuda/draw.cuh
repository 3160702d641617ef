// What: tokens from survivors, by the two-level Gumbel draw of philox.h, and what is told about the row beside them.
// Contract: at least one survivor; lowest id wins a tie. A greedy row takes its largest survivor.
// Idea: 1. the group that wins mass / E with E = -log(v), which is the argmax of log mass + Gumbel noise: every block finds the best of
//   its own groups, and posts it with their sums; 2. in it, the token that wins w / E, by the block where it lies; 3. statistics, each
//   from sums of the whole row.
// Who does what: 1 a thread a group; 2 a thread a token. Numbers: scores in double.
// Randomness: coordinates (seed, step, stream; group id, use kGroup) and (...; token id, use kToken).
// Cost: one round for up to kTogether samples; a noise for each group with survivors, and 256, per sample. Limits: none.
#pragma once

#include "narrow.cuh"

namespace fastdecode {
namespace cuda {

constexpr int kTogether = 3;  // samples that are drawn in a round

// A score above 0 with an id. Scores sort as their bits do; of equal ones the lower id wins.
struct Best {
  uint64_t score;  // 0: nobody
  uint32_t id;

  FD_MEMBER void meet(uint64_t other, uint32_t its_id) {
    if (other > score || (other == score && its_id < id)) score = other, id = its_id;
  }
};

FD_DEVICE uint64_t bits_of_score(double score) {
  uint64_t bits;
  memcpy(&bits, &score, 8);
  return bits;  // of numbers >= 0, in the same order
}

// Over a warp, in every lane.
FD_DEVICE Best best_of_warp(const Best& mine) {
  const uint32_t high = max_in_warp(uint32_t(mine.score >> 32));
  const bool first = uint32_t(mine.score >> 32) == high;
  const uint32_t low = max_in_warp(first ? uint32_t(mine.score) : 0);
  const bool second = first && uint32_t(mine.score) == low;
  return {uint64_t(high) << 32 | low, ~max_in_warp(second ? ~mine.id : 0)};
}

// Samples [first, first + n) of the row.
struct Samples {
  int64_t first;
  int n;
};

FD_DEVICE Coordinates at_sample(Coordinates at, Use use, int64_t sample) {
  at.stream = stream_for(use, uint64_t(sample), at.stream);
  return at;
}

// What the round of a draw says: the groups, of each sample; with `sums`, the sums of the row's survivors, of whom the thread counted v.
struct Groups {
  uint32_t of[kTogether];  // kMaxGroups: no group has mass
  Sums sums;
};

// 1. at.stream is the request's. The table has the masses at scale c; with `fresh` they were left just now, and are to be added up.
FD_CALLED Groups winning_groups(Team team, Coordinates at, float c, Samples samples, bool fresh, int64_t counted) {
  const Slice slice = row().slice;
  const Table table = memory().table;
  const float hi = row().hi, top = row().top;
  if (fresh) sync_block();
  int64_t (*part)[kSlots] = team.parts();
#pragma unroll 1
  for (int s = 0; s < samples.n; ++s) {
    Best best{0, kMaxGroups};
    const Coordinates its = at_sample(at, kGroup, samples.first + s);
    for (int k = thread(); k < slice.padded(); k += threads()) {
      double mass = 0, moment;
      relative(table, slice, k, hi, top, c, &mass, &moment);
      const uint32_t g = uint32_t(slice.first + k);
      if (mass > 0) best.meet(bits_of_score(mass / exponential_of(words_of(its, g >> 2).w[g & 3])), g);
    }
    best = best_of_warp(best);
    if (lane() == 0) part[warp()][2 * s] = int64_t(best.score), part[warp()][2 * s + 1] = best.id;
  }
  static_assert(2 * kTogether + 2 <= kSlots, "the last two hold the count");
  const uint32_t n = sum_in_warp(uint32_t(counted));
  if (lane() == 0) part[warp()][2 * kTogether] = n, part[warp()][2 * kTogether + 1] = 0;
  team.parts_are_left();
  const int letters = fresh ? kTogether + 1 : samples.n;
  team.promise_all(letters + (fresh ? chunks_posted() : 0));
  int64_t (*box)[kSlots] = mail().box[team.turn()];
  // A warp for each sample, a lane for each block that it is posted to.
  for (int i = warp(); i < letters; i += warps()) {
    Best best{0, kMaxGroups};
    Chunk letter;
    if (i == kTogether) {
      letter = chunk_of(int64_t(sum_in_warp(lane() < warps() ? uint32_t(part[lane()][2 * i]) : 0u)), 0);
    } else {
      if (lane() < warps() && i < samples.n) best = {uint64_t(part[lane()][2 * i]), uint32_t(part[lane()][2 * i + 1])};
      best = best_of_warp(best);
      letter = chunk_of(int64_t(best.score), best.id);
    }
    if (lane() < ranks()) team.post_one(&box[rank()][2 * i], lane(), letter);
  }
  if (fresh) post_table(team, hi, c);
  team.receive();
  Groups found{};
#pragma unroll
  for (int s = 0; s < kTogether; ++s) {
    if (s >= samples.n) break;
    Best best{0, kMaxGroups};
    if (lane() < ranks()) best = {uint64_t(box[lane()][2 * s]), uint32_t(box[lane()][2 * s + 1])};
    found.of[s] = best_of_warp(best).id;
  }
  if (!fresh) return found;
  int64_t all = 0;
  for (int r = 0; r < ranks(); ++r) all += box[r][2 * kTogether];
  double mass, moment;
  sum_of_table(team, hi, top, c, &mass, &moment);
  found.sums = sums_of(double(all), mass, moment * kLn2);
  return found;
}

// 2. By the block where the group lies: every warp leaves its best token, block_turn tells where.
FD_CALLED void leave_tokens(Team team, Coordinates at, float c, int group) {
  const Slice slice = row().slice;
  const float bottom = row().bottom(), hi = row().hi, top = row().top;
  Best best{0, kGroupSize};
  for (int i = thread(); i < kGroupSize; i += threads()) {
    const float x = slice.held(group, i);
    if (!(x >= bottom && x <= hi)) continue;
    const uint32_t id = uint32_t(group) * kGroupSize + uint32_t(i);
    const double w = double(exp2_of(scaled(x, top, c)));
    best.meet(bits_of_score(w / exponential_of(words_of(at, id >> 2).w[id & 3])), uint32_t(i));
  }
  best = best_of_warp(best);
  int64_t* const told = team.parts()[warp()];
  if (lane() == 0) told[0] = int64_t(best.score), told[1] = best.id;
}

struct Token {
  int64_t id;
  float x;  // its logit
};

FD_DEVICE Token winning_token(Team team, Coordinates at, float c, int group) {
  const int64_t (*told)[kSlots] = team.parts();
  leave_tokens(team, at, c, group);
  team.parts_are_left();
  Best best{0, kGroupSize};
  if (lane() < warps()) best = {uint64_t(told[lane()][0]), uint32_t(told[lane()][1])};
  best = best_of_warp(best);
  const int i = int(best.id) < kGroupSize ? int(best.id) : 0;
  return {int64_t(group) * kGroupSize + i, row().slice.held(group, i)};
}

// The lowest id whose logit is `x`, which must lie in the row.
FD_CALLED int64_t first_id_of(Team team, float x) {
  int64_t v[1] = {-kMaxVocab};
  each_group(x, [&](int g, const float (&logits)[kEach]) {
#pragma unroll
    for (int j = kEach - 1; j >= 0; --j) {
      const int64_t id = id_of(g, j);
      if (logits[j] == x && -id > v[0]) v[0] = -id;
    }
  });
  team.over_cluster(Max(), v);
  return -v[0];
}

// 3. The second largest logit of the row.
FD_CALLED float runner_up(Team team) {
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
  team.over_cluster(SumThenMax<1>(), v);
  return v[0] > 1 ? max : v[1] ? float_of_key(uint32_t(v[1])) : -INFINITY;
}

// 3. The `top` largest log-probabilities at temperature 1, lower id first on ties.
FD_CALLED void best_of_row(Team team, int64_t top, float* logprobs, int64_t* ids) {
  change([](Row& row) { row.reopen(); });
  const float bound = nth_largest(team, double(top));
  const List list = memory().list;
  const int64_t alive = row().alive, limit = row().slice.limit;
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
    each_group(-INFINITY, [&](int g, const float (&x)[kEach]) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int64_t id = id_of(g, j);
        if (id >= limit || !(x[j] < last_x || (x[j] == last_x && id > last_id))) continue;
        const int64_t packed = int64_t(key_of(x[j]) >> 1) << 32 | int64_t(key_of(x[j]) & 1) << 31 | (kMaxVocab - id);
        v[0] = v[0] > packed ? v[0] : packed;
      }
    });
    team.over_cluster(Max(), v);
    last_x = float_of_key(uint32_t(v[0] >> 32) << 1 | uint32_t(v[0] >> 31 & 1));
    last_id = kMaxVocab - (v[0] & 0x7fffffff);
    if (rank() == 0 && thread() == 0) put(filled, last_x, last_id);
  }
}

}  // namespace cuda
}  // namespace fastdecode
