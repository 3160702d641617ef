// What: the list: a few tokens of interest, in the shared memory of every block, and the search for an edge among them.
// Contract: at most kList tokens, ascending by id, the same in every block.
// Idea: 1. gather: count the tokens of each group, say where each group's begin, and write them there in every block; 2. weigh: keys
//   and masses at a scale; 3. search: every warp tries another key, all at once, until two neighbouring keys have the edge
//   between them.
// Who does what: 1 the cluster, 2 and 3 every block for itself, with the same result. Numbers: sums in double. Randomness: none.
// Cost: gather looks twice at groups that reach a bound, and takes two cluster barriers; search takes at most 8 rounds of 16
//   warps, a look at the list each. Limits: a longer list is no list: gather answers so.
#pragma once

#include "measure.cuh"

namespace fastdecode {
namespace cuda {

// 1. How many tokens in all; more than kList: there is no list. `wanted(x)` says who is listed, of groups that reach `bound`.
template <class Wanted>
FD_DEVICE int64_t list_tokens(Row& row, float bound, Wanted wanted) {
  const Table& table = row.memory.table;
  row.listed = 0, row.list_lo = INFINITY, row.list_hi = -INFINITY;
  auto mask_of = [&](int g, float (&x)[kEach]) {
    row.slice.load(g, x);
    uint32_t mine = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) mine |= uint32_t(wanted(x[j])) << j;
    return mine;
  };
  for (int g = row.slice.first + warp(); g < row.slice.end; g += warps()) {
    uint32_t n = 0;
    float x[kEach];
    if (table.max[g] >= bound) n = sum_in_warp(uint32_t(bits_in(mask_of(g, x))));
    if (lane() < ranks()) of_rank(table.place + g, lane())[0] = int(n);
  }
  row.team.meet();
  // Counts become places.
  const int per_thread = (row.groups + threads() - 1) / threads(), first = thread() * per_thread;
  const int end = first + per_thread < row.groups ? first + per_thread : row.groups;
  int64_t v[1] = {0};
  for (int g = first; g < end; ++g) v[0] += table.place[g];
  row.team.below_in_block(v);
  for (int g = first; g < end; ++g) {
    const int n = table.place[g];
    table.place[g] = int(v[0]), v[0] += n;
  }
  int64_t all[1] = {first < end && end == row.groups ? v[0] : 0};
  row.team.over_block(Most(), all);
  if (all[0] > kList) {
    row.team.meet();  // before the next gather writes counts where a slower block still reads these
    return all[0];
  }
  for (int g = row.slice.first + warp(); g < row.slice.end; g += warps()) {
    if (!(table.max[g] >= bound)) continue;
    float x[kEach];
    const uint32_t mine = mask_of(g, x);
    if (!ballot(mine != 0)) continue;
    const uint32_t below = (1u << lane()) - 1;
    int at = table.place[g];
#pragma unroll
    for (int j = 0; j < kEach; ++j) at += bits_in(ballot(mine >> j & 1) & below);
#pragma unroll
    for (int j = 0; j < kEach; ++j)
      if (mine >> j & 1) {
        for (int r = 0; r < ranks(); ++r) {
          of_rank(row.memory.list.x + at, r)[0] = x[j];
          of_rank(row.memory.list.id + at, r)[0] = g * kGroupSize + lane() * kEach + j;
        }
        ++at;
      }
  }
  row.team.meet();
  row.listed = int(all[0]);
  return all[0];
}

// The survivors at or above `bound`.
FD_CALLED int64_t gather(Row& row, float bound) {
  const float from = fmaxf(bound, row.bottom()), hi = row.hi;
  const int64_t all = list_tokens(row, from, [&](float x) { return x >= from && x <= hi; });
  if (all <= kList) row.list_lo = from, row.list_hi = fminf(hi, row.max);
  return all;
}

// Keys of listed tokens: all lie in [low, high).
struct Range {
  uint32_t low, high;
};

// 2. Of the listed survivors, those with keys from `from` on.
FD_CALLED Range weigh(Row& row, const Keys& keys, float c, uint32_t from) {
  const List& list = row.memory.list;
  int64_t v[2] = {0, 0};
  sync_block();
  for (int i = thread(); i < row.listed; i += threads()) {
    const float x = list.x[i], y = fminf(row.scaled(x, c), 0.0f);
    const uint32_t key = key_of(keys.of(x, y));
    const bool in = x >= row.bottom() && x <= row.hi && key >= from;
    list.key[i] = in ? key : 0;
    list.w[i] = exp2_of(y), list.y[i] = y;
    if (!in) continue;
    v[0] = v[0] > int64_t(key) ? v[0] : int64_t(key);
    v[1] = v[1] > int64_t(~key) ? v[1] : int64_t(~key);
  }
  row.team.over_block(Most(), v);
  return {~uint32_t(v[1]), uint32_t(v[0]) + 1};
}

// Sums over what was weighed and has a key in [low, high), by one warp.
FD_DEVICE Sums sum_of_list(const Row& row, uint32_t low, uint32_t high) {
  const List& list = row.memory.list;
  double mass = 0, moment = 0;
  uint32_t n = 0;
  for (int i = lane(); i < row.listed; i += kLanes) {
    const uint32_t key = list.key[i];
    if (key >= low && key < high) ++n, mass += double(list.w[i]), moment += double(list.w[i]) * double(list.y[i]);
  }
  sum_in_warp(&mass, &moment);
  return sums_of(double(sum_in_warp(n)), mass, moment * kLn2);
}

// The walk stops at a group of ties with the key `at`, before which it has passed `before` tokens: where the kept ones begin.
FD_DEVICE uint32_t kept_from(const Cut& cut, uint32_t at, double before) {
  // Of a kStopBefore walk, `keep` tokens stay whatever they measure.
  return int(cut.stop) == kStopBefore && before >= double(cut.keep) ? at + 1 : at;
}

// 3. Where the kept keys begin. The walk stops at a key of `range`; `above` are the sums over larger keys that are not listed.
FD_CALLED uint32_t search_list(Row& row, const Cut& cut, const Sums& whole, double need, const Sums& above,
                               Range range) {
  const List& list = row.memory.list;
  double before = above.n;  // tokens with keys from range.high on
  while (range.high - range.low > 1) {
    const uint64_t width = range.high - range.low;
    const uint32_t pivot = range.low + uint32_t(width * uint64_t(warp() + 1) / uint64_t(warps() + 1));
    const Sums part = plus(above, sum_of_list(row, pivot, 0xffffffffu));
    const bool reached = reaches(cut, part, whole, need);
    // Between two pivots the range goes on from its lowest key to its highest, so that rounds depend on tokens, not on floats.
    uint32_t under = 0, not_over = 0;  // the highest key below the pivot; ~ the lowest from it on
    for (int i = lane(); i < row.listed; i += kLanes) {
      const uint32_t key = list.key[i];
      if (key < pivot)
        under = key > under ? key : under;
      else
        not_over = ~key > not_over ? ~key : not_over;
    }
    under = most_in_warp(under), not_over = most_in_warp(not_over);
    int64_t (*told)[kSlots] = row.team.mail->part[row.team.block_turn];
    if (lane() == 0)
      told[warp()][0] = reached, told[warp()][1] = int64_t(part.n), told[warp()][2] = under,
      told[warp()][3] = ~not_over;
    sync_block();
    row.team.block_turn ^= 1;
    int w = warps() - 1;
    while (w >= 0 && !told[w][0]) --w;
    if (w >= 0) range.low = uint32_t(told[w][3]);
    if (w + 1 < warps()) range.high = uint32_t(told[w + 1][2]) + 1, before = double(told[w + 1][1]);
    if (range.high <= range.low) range.high = range.low + 1;  // rounding: the stop is at the lowest key that reached
  }
  return kept_from(cut, range.low, before);
}

}  // namespace cuda
}  // namespace fastdecode
