// What: runs one cut: finds its edge and narrows the survivors to what it keeps. THE place that chooses how an edge is searched for.
// Contract: cut.h says what a cut means. Ties stay or go together.
// Idea: a floor is a closed form of sums over the survivors. A prefix is searched for by one of three strategies, which have one
//   signature: near the top (search_near_top.inl), in a bracket guessed from a sample (search_bracket.inl), among all survivors,
//   gathered (search_gather.inl). Which one is tried first changes the time, never the answer.
// Who does what: one thread. Numbers: as in survivors.inl. Randomness: none.
// Cost: passes over the row: 1 for a floor without sums, 2 for few survivors, 3 for many. Limits: none.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../cut.h"
#include "exp2.inl"
#include "narrow.inl"
#include "row.inl"
#include "search.inl"
#include "search_bracket.inl"
#include "search_gather.inl"
#include "search_near_top.inl"
#include "survivors.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

static void run_prefix(Survivors& survivors, const Cut& cut);

// The rank-th largest logit of the survivors, or -inf if there are fewer. The survivors stay, in the workspace or in the row.
static float nth_largest(Survivors& survivors, double rank) {
  if (double(survivors.count()) < rank) return -INFINITY;
  Cut cut{};
  cut.kind = kPrefix, cut.measure = kCount, cut.need = float(rank), cut.keep = 1, cut.within = INFINITY;
  cut.temperature = 1;
  if (survivors.gathered()) {
    if (!survivors.known().has_weights()) survivors.sums_at(survivors.at(1));
    const int64_t n = survivors.count();
    return search_gathered(cut, Sums{double(n)}, survivors.workspace(), {}, n).key;
  }
  Survivors scout(survivors);  // it shares the workspace, of which the survivors need nothing but the masses of groups
  run_prefix(scout, cut);
  survivors.masses().overwritten();
  return scout.interval().lo;
}

static float floor_edge(Survivors& survivors, const Cut& cut) {
  const double t = cut.temperature;
  const Scale s = survivors.at(t);
  Whole whole;
  if (wants_sums(cut)) {
    const Sums& sums = survivors.measured_at(s, wants_moment(cut));
    whole.ln_mass = log(sums.mass) - (double(survivors.top()) - double(s.base)) / t;
    whole.entropy = entropy_of(sums);
  }
  if (cut.w_sd != 0 || cut.w_p2 != 0) {
    const Spread spread = survivors.spread_at(s, cut.w_p2 != 0);
    const double squares = spread.squares - spread.sum * spread.sum / spread.n;
    whole.sd = spread.n > 1 ? sqrt(fmax(squares, 0.0) / (spread.n - 1)) / t : 0.0;
    if (cut.w_p2 != 0) whole.ln_p2 = log(spread.mass2) - 2 * log(survivors.measured_at(s, false).mass);
  }
  const float edge = round_up(double(survivors.top()) + t * floor_of(cut, whole));
  return cut.keep > 1 ? fminf(edge, nth_largest(survivors, cut.keep)) : edge;
}

// A prefix for which only the `within` largest survivors exist: they are gathered. A group of ties that straddles that rank counts with
// its share, as weights that are smaller.
static void run_prefix_within(Survivors& survivors, const Cut& cut, Scale s) {
  const Workspace& ws = survivors.workspace();
  const float boundary = nth_largest(survivors, cut.within);
  const Interval existing{boundary, survivors.interval().hi};
  survivors.keep_gathered(survivors.gathered() ? survivors.count() : gather(survivors.row(), ws, existing), existing);
  const int64_t n = survivors.count();
  Sums whole = survivors.sums_at(s), tied;
  for (int64_t i = 0; i < n; ++i)
    if (ws.x[i] == boundary) add(&tied, ws.w[i], ws.y[i]);
  const double share = (double(cut.within) - (double(n) - tied.n)) / tied.n;
  whole.mass -= (1 - share) * tied.mass, whole.moment -= (1 - share) * tied.moment;
  for (int64_t i = 0; i < n; ++i)
    if (ws.x[i] == boundary) ws.w[i] *= float(share);
  const Edge edge = search_gathered(cut, whole, ws, {}, n);
  if (edge.stopped) survivors.keep_gathered(n, {edge.key, survivors.interval().hi});
  survivors.weights_changed();
}

static void run_prefix(Survivors& survivors, const Cut& cut) {
  const bool all_exist = !(cut.within < float(survivors.count()));
  const bool keeps_all =
      cut.need == INFINITY || (int(cut.measure) == kCount && double(cut.need) >= double(survivors.count()));
  if (all_exist && keeps_all) return;
  const Scale s = survivors.at(cut.temperature);
  if (!all_exist) return run_prefix_within(survivors, cut, s);
  if (!survivors.gathered()) {
    const bool many = survivors.row().groups() >= kFewestGroups && keeps_many(survivors, cut, s);
    if (many && prefix_by_bracket(survivors, cut, s)) return;
    if (prefix_near_top(survivors, cut, s)) return;
    if (!many && prefix_by_bracket(survivors, cut, s)) return;
  }
  prefix_by_gathering(survivors, cut, s);
}

static void run_cut(Survivors& survivors, const Cut& cut) {
  if (cut.temperature == 0 || survivors.known().count() == 1) return;  // a greedy row has nothing left to cut
  survivors.masses().settle();
  survivors.gather_few();
  if (int(cut.kind) == kFloor)
    survivors.keep_from(floor_edge(survivors, cut));
  else
    run_prefix(survivors, cut);
}

}  // namespace FD_TARGET
}  // namespace fastdecode
