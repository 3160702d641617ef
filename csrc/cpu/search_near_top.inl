// What: a strategy for a prefix: its edge lies among the largest survivors.
//
// A strategy is a function of (survivors, cut, scale). It returns true after it has narrowed the survivors to what the prefix keeps, or
// has found that the prefix keeps all. It returns false if the edge is not where it looks; the survivors are then as before, and
// another strategy must run (cuts.inl). No strategy may guess: true is an exact answer.
//
// When it pays: on most rows of a language model. A few dozen tokens hold most of the mass, so top-heavy prefixes end there.
//
// How:
// 1. Each group of 256 tokens has a maximum, known since the row was opened. A bound that `rank` of these maxima reach has at least
//    `rank` tokens at or above it, and usually few more. Finding it reads V / 256 numbers.
// 2. Gather the tokens at or above the bound: only groups whose maximum reaches it are read.
// 3. In order of logits, the gathered tokens are the first ones of the walk. So if their sums reach the need, the edge is among them:
//    search them. By typicality the walk begins at the centre and takes tokens on either side. The gathered tokens hold all survivors
//    at or above the bound, so they are complete up to the bound's own distance from the centre if the centre lies above the
//    bound, and say nothing if it lies below. Only tokens that are nearer than that are searched.
// 4. Otherwise look at three times as many, twice at most: past some 200 tokens another strategy is cheaper. A count knows its rank
//    and goes on.
//
// Exactness: step 3 compares exact sums with the need of the cut, and the search compares logits of the row. The bound decides only how
// many tokens are looked at.
//
// Cost: a round reads V / 256 maxima and the groups that reach the bound; before it, the sums over all survivors if the cut wants them.
// Limits: fails in flat rows, and where the prefix keeps more than some 200 tokens.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../cut.h"
#include "../order.h"
#include "exp2.inl"
#include "measure.inl"
#include "narrow.inl"
#include "row.inl"
#include "search.inl"
#include "simd.inl"
#include "survivors.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

constexpr int64_t kFirstRank = 64, kLastRank = 192;

// The gathered tokens that a walk by typicality certainly meets before any that is not gathered.
struct Nearest {
  int64_t n;  // in the workspace's key, key_w, key_y, in no order
  Sums sums;
};

// `complete`: all survivors are gathered. Else all at or above `bound` are.
static Nearest nearest_of(const Workspace& ws, int64_t n, const Keys& keys, float bound, bool complete) {
  const bool below = (bound - keys.scale.base) * keys.scale.c < keys.centre;
  const float farthest = complete ? -INFINITY : below ? keys.of(broadcast(bound))[0] : INFINITY;
  int64_t nearest = 0;
  Sums sums;
  for (int64_t i = 0; i < n; i += kLanes) store(ws.key + i, keys.of(load(ws.x + i)));
  for (int64_t i = 0; i < n; ++i) {  // what is written lies at or before what was read
    const float key = ws.key[i];
    ws.key[nearest] = key, ws.key_w[nearest] = ws.w[i], ws.key_y[nearest] = ws.y[i];
    if (key > farthest) add(&sums, ws.w[i], ws.y[i]), ++nearest;
  }
  return {nearest, sums};
}

static bool prefix_near_top(Survivors& survivors, const Cut& cut, Scale s) {
  const Row& row = survivors.row();
  const Workspace& ws = survivors.workspace();
  const Interval interval = survivors.interval();
  const Sums whole = survivors.measured_for(cut, s);
  const Keys keys = keys_of(cut, whole, s);
  const double need = needed(cut, whole);
  const bool by_count = int(cut.measure) == kCount;
  int64_t rank = by_count ? int64_t(fmin(fmax(double(cut.need), 1), 1e15)) : kFirstRank;
  for (; rank <= kLastRank || (by_count && rank < row.groups()); rank *= 3) {
    // 1.
    float bound = bound_by_groups(ws.group_max, row.groups(), rank);
    if (bound == kLowest) return false;
    bound = fmaxf(bound, interval.lo);
    const bool complete = bound == interval.lo;
    // 2.
    const int64_t n = gather(row, ws, {bound, interval.hi});
    const Sums above = gathered_sums(ws, n, s);
    // 3.
    if (keys.by_logit) {
      if (!complete && !reaches(cut, above, whole, need)) continue;
      survivors.keep_found(search_gathered(cut, whole, ws, keys, n), n, keys);
      return true;
    }
    const Nearest nearest = nearest_of(ws, n, keys, bound, complete);
    if (!complete && !reaches(cut, nearest.sums, whole, need)) continue;
    for (int64_t i = nearest.n; i < nearest.n + kLanes; ++i) ws.key[i] = -INFINITY, ws.key_w[i] = ws.key_y[i] = 0;
    survivors.keep_found(search(cut, whole, ws, {ws.key, ws.key_w, ws.key_y}, nearest.n), n, keys);
    return true;
  }
  return false;
}

}  // namespace FD_TARGET
}  // namespace fastdecode
