// What: the list: a few tokens of interest, in the shared memory of every block, and the search for an edge among them.
// Contract: at most kList tokens; their order differs from block to block, and nothing depends on it.
// Idea: 1. gather: each block lists its own tokens, then copies those of the others; 2. weigh: keys, masses and moments at a scale;
//   3. search: every warp tries another key, all at once, until two neighbouring keys have the edge between them.
// Who does what: 1 the cluster, 2 and 3 every block for itself, with the same result. Numbers: fixed point. Randomness: none.
// Cost: gather looks only at groups that reach the bound, and takes two cluster barriers; search takes at most 8 rounds of 16
//   warps, a look at the list each. Limits: a longer list is no list: gather answers so.
#pragma once

#include "measure.cuh"

namespace fastdecode {
namespace cuda {

// Before a block's list may be written again.
FD_DEVICE void start_list(Row& row) {
  row.listed = 0, row.list_lo = INFINITY, row.list_hi = -INFINITY;
  if (row.pulled) sync_cluster();
  row.pulled = false;
  if (thread() == 0) row.team.mail->gathered = 0;
  sync_block();
}

// Puts those of a group's tokens on this block's list whose bit is set in `mine`, a bit for each of a lane's.
FD_DEVICE void append(Row& row, int g, const float (&x)[kEach], uint32_t mine) {
  if (!ballot(mine != 0)) return;
  const uint32_t below = (1u << lane()) - 1;
  int before = 0, all = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const uint32_t who = ballot(mine >> j & 1);
    before += bits_in(who & below), all += bits_in(who);
  }
  int at = 0;
  if (lane() == 0) at = add_to(&row.team.mail->gathered, all);
  at = shuffle(at, 0) + before;
#pragma unroll
  for (int j = 0; j < kEach; ++j)
    if (mine >> j & 1) {
      if (at < kList) row.memory.list.x[at] = x[j], row.memory.list.id[at] = g * kGroupSize + lane() * kEach + j;
      ++at;
    }
}

// Copies what the other blocks have listed. How many there are in all; more than kList: there is no list.
FD_DEVICE int64_t finish_list(Row& row) {
  List& list = row.memory.list;
  sync_block();
  int64_t each[kMaxRanks];
  const int64_t all = row.team.over_ranks(row.team.mail->gathered, each);
  row.pulled = ranks() > 1;
  if (all > kList) return all;
  int end = int(each[rank()]);
  for (int r = 0; r < ranks(); ++r) {
    if (r == rank()) continue;
    const int n = int(each[r]);
    for (int i = thread(); i < n; i += threads())
      list.x[end + i] = of_rank(list.x + i, r)[0], list.id[end + i] = of_rank(list.id + i, r)[0];
    end += n;
  }
  sync_block();
  row.listed = end;
  return all;
}

// 1. The survivors at or above `bound`.
FD_CALLED int64_t gather(Row& row, float bound) {
  bound = fmaxf(bound, row.bottom());
  start_list(row);
  row.each_group(bound, [&](int g, const float(&x)[kEach]) {
    uint32_t mine = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) mine |= uint32_t(x[j] >= bound && x[j] <= row.hi) << j;
    append(row, g, x, mine);
  });
  const int64_t all = finish_list(row);
  if (all <= kList) row.list_lo = bound, row.list_hi = fminf(row.hi, row.max);
  return all;
}

// 2. Of the listed survivors, those with keys from `from` on; c = 0: no masses.
FD_CALLED void weigh(Row& row, const Keys& keys, float c, uint32_t from) {
  const List& list = row.memory.list;
  for (int i = thread(); i < row.listed; i += threads()) {
    const float x = list.x[i], y = fminf(row.scaled(x, c), 0.0f);
    const uint32_t key = key_of(keys.of(x, y));
    const bool in = x >= row.bottom() && x <= row.hi && key >= from;
    const float w = in && c != 0 ? exp2_of(y) : 0.0f;
    list.key[i] = in ? key : 0;
    list.mass[i] = fixed_of<kSumBits>(w);
    list.moment[i] = fixed_of<kSumBits>(-w * y);
  }
  sync_block();
}

// Sums over all that were weighed.
FD_CALLED Exact sum_of_list(Row& row) {
  const List& list = row.memory.list;
  int64_t v[3] = {0, 0, 0};
  for (int i = thread(); i < row.listed; i += threads())
    if (list.key[i]) ++v[0], v[1] += list.mass[i], v[2] += list.moment[i];
  row.team.over_block(Sum(), v);
  return {v[0], v[1], v[2]};
}

// The walk stops at a group of ties with the key `at`, before which it has passed `before` tokens: where the kept ones begin.
FD_DEVICE uint32_t kept_from(const Cut& cut, uint32_t at, int64_t before) {
  // Of a kStopBefore walk, `keep` tokens stay whatever they measure.
  return int(cut.stop) == kStopBefore && double(before) >= double(cut.keep) ? at + 1 : at;
}

// 3. Where the kept keys begin. The walk stops at a key in [low, high); `above` are the sums over all larger ones.
FD_CALLED uint32_t search_list(Row& row, const Cut& cut, const Sums& whole, double need, Exact above, uint32_t low,
                               uint32_t high) {
  const List& list = row.memory.list;
  int64_t before = above.n;  // tokens with keys from `high` on
  while (high - low > 1) {
    const uint64_t range = high - low;
    auto pivot_of = [&](int w) { return low + uint32_t(range * uint64_t(w + 1) / uint64_t(warps() + 1)); };
    const uint32_t pivot = pivot_of(warp());
    int64_t v[3] = {0, 0, 0};
    for (int i = lane(); i < row.listed; i += kLanes) {
      const uint32_t key = list.key[i];
      if (key >= pivot && key < high) ++v[0], v[1] += list.mass[i], v[2] += list.moment[i];
    }
    row.team.over_warp(Sum(), v);
    // Tokens from `high` on are in `above` or in earlier rounds' sums.
    const Exact part = plus(above, {v[0], v[1], v[2]});
    const bool reached = reaches(cut, part.sums(), whole, need);
    int64_t(*told)[kSlots] = row.team.mail->part[row.team.block_turn];
    if (lane() == 0) told[warp()][0] = reached, told[warp()][1] = v[0], told[warp()][2] = v[1], told[warp()][3] = v[2];
    sync_block();
    row.team.block_turn ^= 1;
    int w = warps() - 1;
    while (w >= 0 && !told[w][0]) --w;
    const uint32_t new_low = w >= 0 ? pivot_of(w) : low;
    if (w + 1 < warps()) {
      high = pivot_of(w + 1);
      above = plus(above, {told[w + 1][1], told[w + 1][2], told[w + 1][3]});
      before = above.n;
    }
    low = new_low;
  }
  return kept_from(cut, low, before);
}

}  // namespace cuda
}  // namespace fastdecode
