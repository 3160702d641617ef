// What: the survivors of one row: which tokens they are, what is known about them, and what can happen to them.
// Contract: finite logits and -inf (a row with a NaN or +inf never gets here). Ties stay or go together, because all that can
//   happen is that the interval [lo, hi] of logits narrows.
// Idea: 1. measure: sums over the survivors are kept from one cut to the next while they hold; Known says which hold, and at which
//   scale. 2. narrow: few survivors are gathered in the workspace, and no later cut reads the row again; many stay an interval.
// Who does what: one thread. Numbers: sums in double; edges are logits of the row, compared exactly.
// Randomness: none. Cost: measured_at and sums_at read the row where Known has no sums. Limits: none.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../cut.h"
#include "../dtype.h"
#include "../order.h"
#include "exp2.inl"
#include "masses.inl"
#include "measure.inl"
#include "narrow.inl"
#include "open.inl"
#include "row.inl"
#include "search.inl"
#include "simd.inl"
#include "split.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

// What is known about the survivors. Each fact holds at one scale, and only the transitions below change a fact: whoever changes
// the survivors, or what the workspace holds of them, calls the one that says what happened.
//
//   fact      holds                                                        until
//   count     how many survive                                             uncounted
//   sums      mass and moment over the survivors                           gathered, uncounted, weights_changed
//   weights   ws.y and ws.w are those of the gathered survivors            gathered, weights_changed
//   whole     mass and moment over the row, whatever survives              never
class Known {
 public:
  explicit Known(int64_t alive) : n_(alive), alive_(alive) {}

  bool has_count() const { return n_ >= 0; }
  int64_t count() const { return n_; }  // -1: not known
  bool has_sums(Scale s, bool moment) const { return sums_at_ == s && (!moment || has_moment(sums_)); }
  const Sums& sums() const { return sums_; }
  bool has_weights() const { return weights_at_.c != 0; }
  bool has_weights(Scale s) const { return weights_at_ == s; }
  bool has_whole(float c) const { return whole_c_ == c; }
  const Sums& whole() const { return whole_; }

  // ---- transitions

  // A pass over the row added up the survivors. `open`: nothing was cut, so these are the sums over the row. The moment may be a NaN.
  void added_up(const Sums& sums, Scale s, bool open) {
    sums_ = sums, sums_at_ = s;
    if (n_ < 0) n_ = int64_t(sums.n);
    sums_.n = double(n_);
    if (open && has_moment(sums)) whole_ = sums_, whole_c_ = s.c;
  }

  // A pass over the row added up all its tokens.
  void whole_added_up(const Sums& sums, float c) { whole_ = sums, whole_.n = double(alive_), whole_c_ = c; }

  // The gathered survivors were weighed.
  void weighed(const Sums& sums, Scale s) { sums_ = sums, sums_at_ = weights_at_ = s; }

  // The survivors are now `n` gathered tokens.
  void gathered(int64_t n) { n_ = n, sums_at_ = weights_at_ = {}; }

  // A search found what is left now: the sums up to its edge, which are as good as new ones. Call it after gathered().
  void left_by_search(const Sums& kept, Scale s) { sums_ = kept, sums_at_ = s; }

  // The same for survivors that are not gathered: the search counted them.
  void left_in_row(const Sums& kept, Scale s) { n_ = int64_t(kept.n), sums_ = kept, sums_at_ = s; }

  // The interval of survivors narrowed, and nobody looked at what is left.
  void uncounted() { n_ = -1, sums_at_ = {}; }

  // The weights in the workspace were changed.
  void weights_changed() { sums_at_ = weights_at_ = {}; }

 private:
  static bool has_moment(const Sums& sums) { return sums.moment == sums.moment; }

  int64_t n_;
  const int64_t alive_;  // tokens of the row above -inf
  Sums sums_, whole_;
  Scale sums_at_, weights_at_;
  float whole_c_ = 0;
};

// The smallest float >= edge.
FD_FN float round_up(double edge) {
  const float f = float(edge);
  return double(f) < edge ? nextafterf(f, INFINITY) : f;
}

class Survivors {
 public:
  Survivors(const Row& row, const Workspace& ws, const Extent& extent, int64_t alive)
      : row_(row),
        ws_(ws),
        max_(extent.max),
        least_(extent.least),
        top_(extent.max),
        known_(alive),
        masses_(row.groups(), ws) {}

  const Row& row() const { return row_; }
  const Workspace& workspace() const { return ws_; }
  bool gathered() const { return gathered_; }  // do they lie in the workspace, or only in the row?
  Interval interval() const { return interval_; }
  float top() const { return top_; }      // the largest survivor
  float least() const { return least_; }  // no logit of the row is smaller
  const Known& known() const { return known_; }
  GroupMasses& masses() { return masses_; }
  const GroupMasses& masses() const { return masses_; }

  // The scale for sums at a temperature. Its base is the row's maximum as long as the survivors' exponentials do not vanish at
  // that base: sums outlive cuts that way.
  Scale at(double temperature) const {
    const float c = scale_of(temperature);
    return {c, (max_ - top_) * c > 16 ? top_ : max_};
  }

  // ---- measure

  int64_t count() {
    if (!known_.has_count()) sums_at(at(1));
    return known_.count();
  }

  // Sums over the survivors; the moment is a NaN unless it is asked for, or known.
  const Sums& measured_at(Scale s, bool moment) {
    if (known_.has_sums(s, moment)) return known_.sums();
    if (gathered_) return sums_at(s);
    add_up(s, moment);
    return known_.sums();
  }

  // The sums that a cut looks at.
  Sums measured_for(const Cut& cut, Scale s) {
    return wants_sums(cut) ? measured_at(s, wants_moment(cut)) : Sums{double(count())};
  }

  // Sums over the survivors, with what the draw needs in the workspace: y and w of gathered ones, else the masses of their groups.
  const Sums& sums_at(Scale s) {
    if (gathered_) {
      if (!known_.has_weights(s)) known_.weighed(gathered_sums(ws_, known_.count(), s), s);
    } else if (!known_.has_sums(s, false) || !masses_.are_at(s)) {
      add_up(s, false);
    }
    return known_.sums();
  }

  // Sums over the whole row, whatever survives; the base is the row's maximum.
  const Sums& whole_at(double temperature) {
    const float c = scale_of(temperature);
    if (!known_.has_whole(c)) {
      known_.whole_added_up(row_sums(row_, ws_, {c, max_}, least_, {}, true), c);
      masses_.overwritten();
    }
    return known_.whole();
  }

  // What a standard deviation and a sum of p^2 need, relative to the base of the scale.
  Spread spread_at(Scale s, bool mass2) const {
    const Interval counted{bottom_unmasked(interval_.lo, top_, row_.dtype), interval_.hi};
    return gathered_ ? gathered_spread(ws_, known_.count(), s, counted) : row_spread(row_, s, counted, mass2);
  }

  // ---- narrow

  // Gathers the survivors if they are known to be few.
  void gather_few() {
    if (!gathered_ && known_.has_count() && known_.count() <= few())
      keep_gathered(gather(row_, ws_, interval_), interval_);
  }

  // The survivors become those at or above `lo`.
  void keep_from(float lo) {
    const Interval kept{lo, interval_.hi};
    if (gathered_) return keep_gathered(known_.count(), kept);
    if (!(lo > kLowest) || lo <= interval_.lo) return;
    const int64_t n = gather(row_, ws_, kept, few());
    if (n >= 0) return keep_gathered(n, kept);
    shrink(kept);
    known_.uncounted(), masses_.overwritten();
  }

  // The survivors become those of n gathered tokens that lie in the interval.
  void keep_gathered(int64_t n, Interval kept) {
    shrink(kept);
    known_.gathered(keep_between(ws_, n, interval_));
    gathered_ = true;
  }

  // After a search by these keys among n gathered tokens, which were all that the edge could keep.
  void keep_found(const Edge& edge, int64_t n, const Keys& keys) {
    if (!edge.stopped) return;
    keep_gathered(n, keys.by_logit ? Interval{edge.key, interval_.hi} : extent_of(edge, n, keys));
    known_.left_by_search(edge.kept, keys.scale);
  }

  // A split added up the survivors, which may tell nothing new, and wrote other masses than theirs.
  void added_up_by_split(const Sums& whole, Scale s, bool moment) {
    masses_.overwritten();
    if (!known_.has_sums(s, moment)) known_.added_up(whole, s, interval_.open());
  }

  // After a split and a search among the tokens between: `kept` are the logits from the edge on. Most survivors stay in the row.
  // The weights of gathered tokens that go become 0.
  void keep_split(const Split& found, Interval above, const Edge& edge, Interval kept, Scale s) {
    V highest = broadcast(found.highest);
    for (int64_t i = 0; i < found.between; i += kLanes) {  // what lies behind the last token is in no interval
      const V x = load(ws_.x + i);
      const M stays = Interval::has(x, kept.bottom(), kept.hi);
      store(ws_.w + i, select_or_zero(stays, load(ws_.w + i)));
      highest = max_of(highest, select(stays, x, broadcast(-INFINITY)));
    }
    masses_.split(above, s);
    shrink(kept);
    top_ = fminf(top_, reduce_max(highest));
    known_.left_in_row(edge.kept, s);
  }

  // Someone changed ws.w.
  void weights_changed() { known_.weights_changed(); }

 private:
  // One pass over the row.
  void add_up(Scale s, bool moment) {
    known_.added_up(row_sums(row_, ws_, s, least_, interval_, moment), s, interval_.open());
    masses_.written(s);
  }

  // The least and the largest logit of those gathered tokens whose keys reach the edge.
  Interval extent_of(const Edge& edge, int64_t n, const Keys& keys) const {
    V minus_lo = broadcast(-INFINITY), hi = minus_lo;
    for (int64_t i = n; i < n + kLanes; ++i) ws_.x[i] = -INFINITY;
    for (int64_t i = 0; i < n; i += kLanes) {
      const V x = load(ws_.x + i);
      const M stays = both(at_least(keys.of(x), broadcast(edge.key)), at_least(x, broadcast(kLowest)));
      minus_lo = max_of(minus_lo, select(stays, -x, broadcast(-INFINITY)));
      hi = max_of(hi, select(stays, x, broadcast(-INFINITY)));
    }
    return {-reduce_max(minus_lo), reduce_max(hi)};
  }

  int64_t few() const { return row_.limit / 16; }  // up to so many are worth gathering

  void shrink(Interval kept) {
    interval_ = {fmaxf(kept.lo, interval_.lo), fminf(kept.hi, interval_.hi)};
    top_ = fminf(top_, interval_.hi);
  }

  const Row& row_;
  const Workspace& ws_;
  const float max_, least_;  // of the row, see Extent
  float top_;
  Interval interval_;
  bool gathered_ = false;
  Known known_;
  GroupMasses masses_;
};

}  // namespace FD_TARGET
}  // namespace fastdecode
