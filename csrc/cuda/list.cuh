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

// 1. How many tokens in all; more than kList: there is no list. `wanted(x)` says who is listed, of groups that reach `bound`; all
// logits in [lo, hi] are.
template <class Wanted>
FD_DEVICE int64_t list_tokens(Team& team, float bound, float lo, float hi, Wanted wanted) {
  const Slice slice = row().slice;
  const Memory its = memory();
  const float* const maxima = its.table.max;
  int* const places = its.table.place;
  auto mask_of = [&](int g, float (&x)[kEach]) {
    slice.load(g, x);
    uint32_t mine = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) mine |= uint32_t(wanted(x[j])) << j;
    return mine;
  };
  for (int g = slice.first + warp(); g < slice.end; g += warps()) {
    uint32_t n = 0;
    float x[kEach];
    if (maxima[g] >= bound) n = sum_in_warp(uint32_t(bits_in(mask_of(g, x))));
    if (lane() < ranks()) of_rank(places + g, lane())[0] = int(n);
  }
  team.meet();
  // Counts become places.
  const int per_thread = (slice.groups + threads() - 1) / threads(), first = thread() * per_thread;
  const int end = first + per_thread < slice.groups ? first + per_thread : slice.groups;
  int64_t v[1] = {0};
  for (int g = first; g < end; ++g) v[0] += places[g];
  team.below_in_block(v);
  for (int g = first; g < end; ++g) {
    const int n = places[g];
    places[g] = int(v[0]), v[0] += n;
  }
  int64_t all[1] = {first < end && end == slice.groups ? v[0] : 0};
  team.over_block(Most(), all);
  const bool fits = all[0] <= kList;
  if (fits)
    for (int g = slice.first + warp(); g < slice.end; g += warps()) {
      if (!(maxima[g] >= bound)) continue;
      float x[kEach];
      const uint32_t mine = mask_of(g, x);
      if (!ballot(mine != 0)) continue;
      const uint32_t below = (1u << lane()) - 1;
      int at = places[g];
#pragma unroll
      for (int j = 0; j < kEach; ++j) at += bits_in(ballot(mine >> j & 1) & below);
#pragma unroll
      for (int j = 0; j < kEach; ++j)
        if (mine >> j & 1) {
          for (int r = 0; r < ranks(); ++r) {
            of_rank(its.list.x + at, r)[0] = x[j];
            of_rank(its.list.id + at, r)[0] = g * kGroupSize + lane() * kEach + j;
          }
          ++at;
        }
    }
  team.meet();  // and the next gather writes counts where nobody still reads these
  change([&](Row& row) {
    row.forget_list();
    if (fits) row.listed = int(all[0]), row.list_lo = lo, row.list_hi = hi;
  });
  return all[0];
}

// The survivors at or above `bound`.
FD_CALLED int64_t gather(Team& team, float bound) {
  const float from = fmaxf(bound, row().bottom()), hi = row().hi;
  return list_tokens(team, from, from, fminf(hi, row().max), [&](float x) { return x >= from && x <= hi; });
}

// Keys of listed tokens: all lie in [low, high).
struct Range {
  uint32_t low, high;
};

// 2. Of the listed survivors, those with keys from `from` on. (Also where nothing is being searched: for their sums.)
FD_CALLED Range weigh(Team& team, Keys keys, float c, uint32_t from) {
  const List list = memory().list;
  const float bottom = row().bottom(), hi = row().hi, top = row().top;
  const int listed = row().listed;
  int64_t v[2] = {0, 0};
  sync_block();
  for (int i = thread(); i < listed; i += threads()) {
    const float x = list.x[i], y = fminf(scaled(x, top, c), 0.0f);
    const uint32_t key = key_of(keys.of(x, y));
    const bool in = x >= bottom && x <= hi && key >= from;
    list.key[i] = in ? key : 0;
    list.w[i] = exp2_of(y), list.y[i] = y;
    if (!in) continue;
    v[0] = v[0] > int64_t(key) ? v[0] : int64_t(key);
    v[1] = v[1] > int64_t(~key) ? v[1] : int64_t(~key);
  }
  team.over_block(Most(), v);
  return {~uint32_t(v[1]), uint32_t(v[0]) + 1};
}

// Sums over what was weighed and has a key in [low, high), by one warp.
FD_DEVICE Sums sum_of_list(uint32_t low, uint32_t high) {
  const List list = memory().list;
  const int listed = row().listed;
  double mass = 0, moment = 0;
  uint32_t n = 0;
  for (int i = lane(); i < listed; i += kLanes) {
    const uint32_t key = list.key[i];
    if (key >= low && key < high) ++n, mass += double(list.w[i]), moment += double(list.w[i]) * double(list.y[i]);
  }
  sum_in_warp(&mass, &moment);
  return sums_of(double(sum_in_warp(n)), mass, moment * kLn2);
}

// The walk stops at a group of ties with the key `at`, before which it has passed `before` tokens: where the kept ones begin.
FD_DEVICE uint32_t kept_from(uint32_t at, double before) {
  const Cut& cut = row().walk.cut;
  // Of a kStopBefore walk, `keep` tokens stay whatever they measure.
  return int(cut.stop) == kStopBefore && before >= double(cut.keep) ? at + 1 : at;
}

// 3. Where the kept keys begin. The walk stops at a key of `range`; `above` are the sums over larger keys, which are not listed.
FD_CALLED uint32_t search_list(Team& team, Range range) {
  const Sums& above = row().walk.above;
  const uint32_t* const keys = memory().list.key;
  const int listed = row().listed;
  double before = above.n;  // tokens with keys from range.high on
  while (range.high - range.low > 1) {
    const uint64_t width = range.high - range.low;
    const uint32_t pivot = range.low + uint32_t(width * uint64_t(warp() + 1) / uint64_t(warps() + 1));
    const Sums part = plus(above, sum_of_list(pivot, 0xffffffffu));
    const bool reached = row().walk.reached(part);
    // Between two pivots the range goes on from its lowest key to its highest, so that rounds depend on tokens, not on floats.
    uint32_t under = 0, not_over = 0;  // the highest key below the pivot; ~ the lowest from it on
    for (int i = lane(); i < listed; i += kLanes) {
      const uint32_t key = keys[i];
      if (key < pivot)
        under = key > under ? key : under;
      else
        not_over = ~key > not_over ? ~key : not_over;
    }
    under = most_in_warp(under), not_over = most_in_warp(not_over);
    int64_t (*told)[kSlots] = mail().part[team.block_turn];
    if (lane() == 0)
      told[warp()][0] = reached, told[warp()][1] = int64_t(part.n), told[warp()][2] = under,
      told[warp()][3] = ~not_over;
    sync_block();
    team.block_turn ^= 1;
    int w = warps() - 1;
    while (w >= 0 && !told[w][0]) --w;
    if (w >= 0) range.low = uint32_t(told[w][3]);
    if (w + 1 < warps()) range.high = uint32_t(told[w + 1][2]) + 1, before = double(told[w + 1][1]);
    if (range.high <= range.low) range.high = range.low + 1;  // rounding: the stop is at the lowest key that reached
  }
  return kept_from(range.low, before);
}

}  // namespace cuda
}  // namespace fastdecode
