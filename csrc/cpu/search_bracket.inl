// What: a strategy for a prefix: its edge lies where a sample of the row says, found with one pass over the row. A strategy is described
// in search_near_top.inl.
//
// When it pays: a prefix that keeps thousands of tokens, as at high temperatures. To gather and weigh them costs more than a pass
// over the row, and the answer is an interval anyhow. keeps_many() tells from the groups' maxima whether to try it first.
//
// How:
// 1. Gather the heaviest tokens, those above a bound that one group in six reaches, and sample the others (guess.inl). The estimated
//    sums give a bracket: tokens that are certainly kept (`above`), and a wider interval (`wide`) that the edge should lie in.
// 2. One pass over the row (split.inl) adds up all survivors and those above the bracket, exactly, and gathers the tokens between.
// 3. The edge is among the gathered tokens if the sums above the bracket do not reach the need and the sums through it do. Then search
//    them, starting from the sums above.
// 4. Otherwise widen the bracket and start again, three times at most. A failed attempt has seen exact sums over one interval; the next
//    guess is anchored there, so that it estimates only the tokens between that edge and its own.
//
// Exactness: steps 2 and 3 use exact sums, and step 3 refuses an edge that does not part the row where the bracket does. So the answer
// never depends on the sample; a bad sample costs another pass.
//
// After a success the survivors stay in the row: most of them were never gathered. The masses of groups lack the tokens between
// (masses.inl) until the draw or the next cut asks for them.
//
// Cost: the sample and a pass of split.inl for each attempt. A wider bracket fails less often and gathers more: bench/NOTES.md.
// Limits: needs enough groups for a sample, kFewestGroups. Attempts fail where the sums are dominated by tokens that a sample misses.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../cut.h"
#include "../order.h"
#include "exp2.inl"
#include "guess.inl"
#include "measure.inl"
#include "narrow.inl"
#include "row.inl"
#include "search.inl"
#include "simd.inl"
#include "split.inl"
#include "survivors.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

constexpr int64_t kFewestGroups = 32;
constexpr int kAttempts = 3;

// keeps_many(): the share of mass in groups with low maxima, relative to the mass that the cut removes.
constexpr double kFlat = 0.15;

// Is the edge far from the top? Estimated from the groups' maxima. It decides which strategy is tried first, no more.
static bool keeps_many(const Survivors& survivors, const Cut& cut, Scale s) {
  if (int(cut.measure) != kMass) return false;
  const float* const group_max = survivors.workspace().group_max;
  const int64_t groups = survivors.row().groups();
  const float bound = bound_by_groups(group_max, groups, groups / 3);
  const Weights<kFar> weights(s);
  V top = broadcast(0.0f), rest = broadcast(0.0f);
  for (int64_t g = 0; g + kLanes <= groups; g += kLanes) {
    const V x = load(group_max + g), w = weights.of(x);
    const V part = select_or_zero(at_least(x, broadcast(bound)), w);
    top += part, rest += w - part;
  }
  const double of_top = reduce_sum(pairs_of(top)), of_rest = reduce_sum(pairs_of(rest));
  return of_rest > kFlat * (1 - double(cut.need)) * (of_top + of_rest);
}

// 1. The `heavy` tokens are gathered here, and overwritten by the split.
static Bracket guessed(const Survivors& survivors, const Cut& cut, Scale s, int attempt, const Seen& seen) {
  const Row& row = survivors.row();
  const Workspace& ws = survivors.workspace();
  const Interval interval = survivors.interval();
  const float bound = bound_by_groups(ws.group_max, row.groups(), row.groups() / 6);
  const int64_t heavy = bound > kLowest ? gather(row, ws, {fmaxf(bound, interval.lo), interval.hi}) : 0;
  gathered_sums(ws, heavy, s);
  Guess guess(cut, row, ws, heavy, bound > kLowest ? bound : INFINITY, s, interval);
  if (survivors.known().has_sums(s, wants_moment(cut))) guess.learn(survivors.known().sums());
  if (seen.sums.n > 0) guess.anchor(seen);
  return guess.bracket(1.8 + 2 * attempt, seen.sums.n > 0 ? 0 : 3 * attempt);
}

static bool prefix_in_bracket(Survivors& survivors, const Cut& cut, Scale s, int attempt, Seen* seen) {
  const Workspace& ws = survivors.workspace();
  const Bracket bracket = guessed(survivors, cut, s, attempt, *seen);
  // 2.
  const Split found = split_for(cut, survivors.row(), ws, s, survivors.least(), survivors.interval(), bracket);
  survivors.added_up_by_split(found.whole, s, wants_moment(cut));
  // 3.
  const Sums whole = survivors.known().sums();
  const Keys keys = keys_of(cut, whole, s);
  const double need = needed(cut, whole);
  *seen = {bracket.above, found.above};
  if (found.above.n > 0 && reaches(cut, found.above, whole, need)) return false;
  const Sums inside = gathered_sums(ws, found.between, s);
  const Sums through = plus(found.above, inside);
  *seen = {bracket.wide, through};
  if (!reaches(cut, through, whole, need)) return false;
  const double so_far = measured(cut, found.above, whole);
  const double share = (need - so_far) / (measured(cut, through, whole) - so_far);
  const Edge edge = search_gathered(cut, whole, ws, keys, found.between, found.above, share);
  if (edge.key == INFINITY) return false;  // the last token kept lies above the bracket
  // The walk was in the order of the keys only if they part the row where the bracket does.
  const Interval kept = logits_of(keys, edge.key), wide = bracket.wide, above = bracket.above;
  if (!(kept.lo <= kept.hi) || kept.lo < wide.lo || kept.hi > wide.hi) return false;
  if (found.above.n > 0 && (above.lo < kept.lo || above.hi > kept.hi)) return false;
  survivors.keep_split(found, bracket.above, edge, kept, s);
  return true;
}

static bool prefix_by_bracket(Survivors& survivors, const Cut& cut, Scale s) {
  if (survivors.row().groups() < kFewestGroups) return false;
  Seen seen;
  for (int attempt = 0; attempt < kAttempts; ++attempt)  // 4.
    if (prefix_in_bracket(survivors, cut, s, attempt, &seen)) return true;
  return false;
}

}  // namespace FD_TARGET
}  // namespace fastdecode
