// What: the list: a few tokens of interest, in the shared memory of every block, and the search for an edge among them.
// Contract: at most kList tokens, ascending by id, the same in every block.
// Idea: 1. gather: every warp stashes what is wanted of its groups; a block posts its tokens with their number, so that every block
//   can put all of them in the order of ids. Where a block has more than a letter holds, the blocks look a second time, and post
//   letter by letter. 2. weigh: keys and masses at a scale; 3. search: every warp tries another key, all at once, until two
//   neighbouring keys have the edge between them.
// Who does what: 1 the cluster, 2 and 3 every block for itself, with the same result. Numbers: sums in double. Randomness: none.
// Cost: gather looks once at groups that reach a bound, and takes one round; search takes a few rounds of all warps, a look at the
//   list each. Limits: a longer list is no list: gather answers so.
#pragma once

#include "measure.cuh"

namespace fastdecode {
namespace cuda {

// ---- 1. gather

// One warp's part of the stash.
struct Stash {
  Listed* to;
  int room, n;  // more than `room` are counted, and not kept

  // wanted[j]: the lane's token j is to be listed.
  FD_MEMBER void add(int group, const float (&x)[kEach], const bool (&wanted)[kEach]) {
    uint32_t all[kEach], any = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) all[j] = ballot(wanted[j]), any |= all[j];
    if (!any) return;
    const uint32_t below = (1u << lane()) - 1;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      int place = n;
#pragma unroll
      for (int k = 0; k < 4; ++k) place += bits_in(all[4 * q + k] & below), n += bits_in(all[4 * q + k]);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (wanted[4 * q + k]) {
          if (place < room) to[place] = {x[4 * q + k], int32_t(id_of(group, 4 * q + k))};
          ++place;
        }
    }
  }
};

FD_DEVICE int stash_of_warp() { return kList / warps(); }

FD_DEVICE Stash stash() {
  sync_block();  // a slow warp may still add up the keys of the list before
  const int room = stash_of_warp();
  return {memory().list.stash + warp() * room, room, 0};
}

// From the letters that were received last: tokens `from`, ... of each block, which has count_of(r) in all.
template <class CountOf>
FD_DEVICE void put_on_list(Team team, CountOf count_of, int from) {
  const Memory its = memory();
  const Listed* const letters = reinterpret_cast<const Listed*>(its.inbox + (team.turn() ^ 1) * ranks() * kLetter);
  for (int k = thread(); k < ranks() * kSegment; k += threads()) {
    const int r = k / kSegment, i = from + k % kSegment;
    if (i >= count_of(r)) continue;
    int place = i;
    for (int other = 0; other < r; ++other) place += count_of(other);
    its.list.x[place] = letters[k].x, its.list.id[place] = letters[k].id;
  }
  sync_block();
}

FD_DEVICE Chunk two_of(const Listed& a, const Listed& b) {
  return {{bits_of_float(a.x), uint32_t(a.id), bits_of_float(b.x), uint32_t(b.id)}};
}

// The round that ends a look at the groups, in which every warp stashed tokens: `n` numbers of each thread, of which 0 must be free for
// the number of tokens, and 1 for whether they are more than was stashed; `extra` chunks that `post_extra` posts. Then the list is
// there, if it has at most kList tokens: again(stash) stashes once more. How many tokens. received(): what came with them.
template <int n, class Op, class Extra, class Received, class Again>
FD_DEVICE int64_t list_round(Team team, Op op, int64_t (&v)[n], const Stash& mine, int extra, Extra post_extra,
                             Received received, Again again) {
  const Memory its = memory();
  v[0] = lane() == 0 ? mine.n : 0, v[1] = mine.n > mine.room;
  int64_t (*part)[kSlots] = team.leave_part(op, v);
  int here = 0;
  bool over = false;
  for (int w = 0; w < warps(); ++w) here += int(part[w][0]), over |= part[w][1] != 0;
  over |= here > kSegment;
  const int posted = over ? 0 : (here + 1) / 2;
  char* const letter = its.inbox + team.turn() * ranks() * kLetter + rank() * kLetter;
  auto one = [&](int i) {
    int w = 0;
    for (; w + 1 < warps() && i >= part[w][0]; ++w) i -= int(part[w][0]);
    const int room = stash_of_warp();
    return its.list.stash[w * room + (i < room ? i : room - 1)];  // the last of an odd number has no second
  };
  team.promise_all((n + 1) / 2 + extra + posted);
  team.post_numbers<n>(op, part);
  post_extra();
  team.post_all(posted, [&](int i) { return letter + 16 * i; }, [&](int i) { return two_of(one(2 * i), one(2 * i + 1)); });
  team.receive();
  team.fold(op, v);
  received();
  const int64_t all = v[0];
  if (all > kList) return all;
  const int64_t (*box)[kSlots] = mail().box[team.turn() ^ 1];
  int64_t longest = 0;
  bool some_over = false;
  for (int r = 0; r < ranks(); ++r)
    some_over |= box[r][1] != 0 || box[r][0] > kSegment, longest = box[r][0] > longest ? box[r][0] : longest;
  if (!some_over) {
    put_on_list(team, [&](int r) { return int(box[r][0]); }, 0);
    return all;
  }
  if (thread() < ranks()) mail().counts[thread()] = int(box[thread()][0]);  // the box is posted to again
  // Once more, with a place for each token of the block; then letter by letter. A slow thread may still read the stash.
  sync_block();
  int before = 0;
  for (int w = 0; w < warp(); ++w) before += int(part[w][0]);
  again(Stash{its.list.stash + before, kList - before, 0});
  for (int from = 0; from < longest; from += kSegment) {
    sync_block();
    const int left = here - from < 0 ? 0 : here - from < kSegment ? here - from : kSegment;
    char* const to = its.inbox + team.turn() * ranks() * kLetter + rank() * kLetter;
    const Listed* const out = its.list.stash + from;
    team.promise_all((left + 1) / 2);
    team.post_all((left + 1) / 2, [&](int i) { return to + 16 * i; },
                  [&](int i) { return two_of(out[2 * i], out[2 * i + 1 < left ? 2 * i + 1 : 2 * i]); });
    team.receive();
    put_on_list(team, [](int r) { return mail().counts[r]; }, from);
  }
  return all;
}

// Lists the tokens that are `wanted`, of groups that reach `bound`; all logits in [lo, hi] are among them.
template <class Wanted>
FD_DEVICE int64_t list_tokens(Team team, float bound, float lo, float hi, Wanted wanted) {
  auto look = [&](Stash& mine) {
    each_group(bound, [&](int g, const float (&x)[kEach]) {
      bool listed[kEach];
#pragma unroll
      for (int j = 0; j < kEach; ++j) listed[j] = wanted(x[j]);
      mine.add(g, x, listed);
    });
  };
  Stash mine = stash();
  look(mine);
  int64_t v[2];
  const int64_t all = list_round(team, SumThenMax<1>(), v, mine, 0, [] {}, [] {}, [&](Stash again) { look(again); });
  change([&](Row& row) {
    row.forget_list();
    if (all <= kList) row.listed = int(all), row.list_lo = lo, row.list_hi = hi;
  });
  return all;
}

// The survivors at or above `bound`.
FD_CALLED int64_t gather(Team team, float bound) {
  const float from = fmaxf(bound, row().bottom()), hi = row().hi;
  return list_tokens(team, from, from, fminf(hi, row().max), [&](float x) { return x >= from && x <= hi; });
}

// Keys of listed tokens: all lie in [low, high).
struct Range {
  uint32_t low, high;
};

// 2. Of the listed survivors, those with keys from `from` on. (Also where nothing is being searched: for their sums.)
FD_CALLED Range weigh(Team team, Keys keys, float c, uint32_t from) {
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
    list.w[i] = exp2_of(y);
    if (!in) continue;
    v[0] = v[0] > int64_t(key) ? v[0] : int64_t(key);
    v[1] = v[1] > int64_t(~key) ? v[1] : int64_t(~key);
  }
  team.over_block(Max(), v);
  return {~uint32_t(v[1]), uint32_t(v[0]) + 1};
}

// Sums over what was weighed at scale c and has a key in [low, high), by one warp.
FD_DEVICE Sums sum_of_list(uint32_t low, uint32_t high, float c) {
  const List list = memory().list;
  const int listed = row().listed;
  const float top = row().top;
  double mass = 0, moment = 0;
  uint32_t n = 0;
  for (int i = lane(); i < listed; i += kLanes) {
    const uint32_t key = list.key[i];
    if (!(key >= low && key < high)) continue;
    const double w = double(list.w[i]);
    ++n, mass += w, moment += w * double(fminf(scaled(list.x[i], top, c), 0.0f));
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
FD_CALLED uint32_t search_list(Team team, Range range) {
  const Sums& above = row().walk.above;
  const float c = row().walk.c;
  const uint32_t* const keys = memory().list.key;
  const int listed = row().listed;
  double before = above.n;  // tokens with keys from range.high on
  while (range.high - range.low > 1) {
    const uint64_t width = range.high - range.low;
    const uint32_t pivot = range.low + uint32_t(width * uint64_t(warp() + 1) / uint64_t(warps() + 1));
    const Sums part = plus(above, sum_of_list(pivot, 0xffffffffu, c));
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
    under = max_in_warp(under), not_over = max_in_warp(not_over);
    int64_t (*told)[kSlots] = team.parts();
    if (lane() == 0)
      told[warp()][0] = reached, told[warp()][1] = int64_t(part.n), told[warp()][2] = under,
      told[warp()][3] = ~not_over;
    team.parts_are_left();
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
