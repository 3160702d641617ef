// What: a guess, from a sample of the row, of where the edge of a prefix is that keeps many tokens.
// Contract: the guess may be wrong; the caller must look at exact sums. Works in the key arrays of the workspace.
// Idea: 1. the heaviest tokens, gathered, count for themselves; 16 tokens of each group of 256, or of every other group, stand for the
//   rest; 2. sums above a few pivots at a time close in on the edge, and on the two edges that the cut would have if the sums were a few
//   standard deviations larger or smaller: these are the bracket.
// Who does what: one thread. Numbers: estimates, in float. Randomness: none, the places of the sample are fixed.
// Cost: the sample, and four reads of it. Limits: none.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../cut.h"
#include "../order.h"
#include "exp2.inl"
#include "row.inl"
#include "search.inl"
#include "simd.inl"
#include "split.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

// The result of a failed attempt: the sums over an interval near the edge. n = 0: none yet.
struct Seen {
  Interval interval;
  Sums sums;
};

// Consecutive tokens of a group that are in the sample, at another place in each group.
constexpr int kStretch = 16;
static_assert(kStretch % kLanes == 0, "the sample is taken in whole vectors");

class Guess {
 public:
  // 1. `heavy`: the number of gathered tokens, which are all survivors at or above `bound`.
  Guess(const Cut& cut, const Row& row, const Workspace& ws, int64_t heavy, float bound, Scale s, Interval interval)
      : cut_(cut),
        ws_(ws),
        every_(row.groups() < 256 ? 1 : 2),
        each_(double(kGroupSize) / kStretch * every_),
        sampled_((row.groups() + every_ - 1) / every_ * kStretch),
        base_(s.base),
        c_(s.c) {
    const bool by_count = int(cut.measure) == kCount;
    const float bottom = interval.bottom();
    row.each(-INFINITY, [&](int64_t g, auto x) FD_INLINE {
      if (g & (every_ - 1)) return;
      const int64_t nth = every_ == 2 ? g / 2 : g;
      const int first = int(nth * 7 % (kGroupSize / kStretch)) * kStretch;
      for (int i = 0; i < kStretch; i += kLanes) store(ws.key + nth * kStretch + i, x[first + i]);
    });
    const float c = c_;
    const Weights<kFar> weights(s);
    for (int64_t i = 0; i < sampled_;
         i += kStep * kLanes) {  // may compute up to three extra stretches; their results are ignored
      V x[kStep], d[kStep], w[kStep];
      for (int k = 0; k < kStep; ++k) x[k] = load(ws.key + i + k * kLanes);
      weights.of<kStep, false>(x, d, w);
      for (int k = 0; k < kStep; ++k) {
        const M light = both(Interval::has(x[k], bottom, interval.hi), less(x[k], broadcast(bound)));
        store(ws.key_y + i + k * kLanes, d[k] * c);
        store(ws.key_w + i + k * kLanes, select_or_zero(light, by_count ? broadcast(1.0f) : w[k]));
      }
    }
    n_ = sampled_ + (heavy + kLanes - 1) / kLanes * kLanes;
    for (int64_t i = 0; i < heavy; i += kLanes) {
      const M real = less(iota(), broadcast(float(heavy - i)));
      const V w = by_count ? broadcast(1.0f) : load(ws.w + i);
      store(ws.key + sampled_ + i, load(ws.x + i)), store(ws.key_y + sampled_ + i, load(ws.y + i));
      store(ws.key_w + sampled_ + i, select_or_zero(real, w / float(each_)));  // in units of the sample's
    }
    // The sums over all survivors, as estimated from the sample.
    V mass = broadcast(0.0f), moment = broadcast(0.0f), squares = broadcast(0.0f);
    for (int64_t i = 0; i < n_; i += kLanes)
      mass += load(ws.key_w + i), moment += load(ws.key_w + i) * load(ws.key_y + i);
    const double total = sum(mass);
    whole_ = {double(row.limit), total * each_, sum(moment) * each_ * kLn2};
    const float centre = Keys::centre_of(whole_);
    for (int64_t i = 0; i < sampled_; i += kLanes) {
      const V off = (load(ws.key_y + i) - centre) * load(ws.key_w + i);
      squares += off * off;
    }
    cut_.keep = 1;
    believe(centre, total > 0 ? float(sqrt(sum(squares)) / total) : 0);
  }

  // Takes in the exact sums over all survivors. The sample then stands for all but the heavy tokens.
  void learn(const Sums& whole) {
    V light = broadcast(0.0f), heavy = broadcast(0.0f);
    for (int64_t i = 0; i < sampled_; i += kLanes) light += load(ws_.key_w + i);
    for (int64_t i = sampled_; i < n_; i += kLanes) heavy += load(ws_.key_w + i);
    const bool by_count = int(cut_.measure) == kCount;
    const double known = sum(heavy) * each_, rest = (by_count ? whole.n : whole.mass) - known;
    const double each = fmax(rest, 0.001 * known) / fmax(sum(light), 1e-30);
    for (int64_t i = sampled_; i < n_; i += kLanes) store(ws_.key_w + i, load(ws_.key_w + i) * float(each_ / each));
    each_ = each, whole_ = by_count ? Sums{whole.n, whole.n, 0} : whole;
    believe(Keys::centre_of(whole), 0);
  }

  // Takes in the exact sums over an interval. Sums up to an edge near it then start from those, and only the tokens between the two
  // are estimated.
  void anchor(const Seen& seen) {
    const Sums& exact = seen.sums;
    anchor_low_ = (seen.interval.lo - base_) * c_, anchor_high_ = (seen.interval.hi - base_) * c_, anchored_ = true;
    V mass = broadcast(0.0f), moment = broadcast(0.0f);
    for (int64_t i = 0; i < n_; i += kLanes) {
      const V y = load(ws_.key_y + i), w = select_or_zero(in_anchor(y), load(ws_.key_w + i));
      mass += w, moment += w * y;
    }
    off_mass_ = (int(cut_.measure) == kCount ? exact.n : exact.mass) / each_ - sum(mass);
    off_moment_ = measures_moment(cut_) ? exact.moment / each_ - sum(moment) * kLn2 : 0;
  }

  // 2. The edge is in the bracket unless the sample errs by more than `deviations` standard deviations. `spare` widens it on either
  //    side by so many probes, each 1/32 of the sample: a few heavy tokens can hide how much the sample errs.
  Bracket bracket(double deviations, int spare) {
    spread_pivots();
    add_up();
    Cell middle;
    narrow(&middle, 0);
    const double margin = deviations * error_at(middle.low == kLowest ? middle.high : middle.low);
    Cell upper, lower;
    narrow(&upper, margin), narrow(&lower, -margin);
    // The lower edge may ask for more than the row holds. Then take a smaller margin, rather than all the rest of the row.
    double less = margin;
    while (less > margin / 32 && !reached(whole_.mass / each_, whole_.moment / each_, -less)) less /= 2;
    if (less != margin) lower = {}, narrow(&lower, -less);
    for (int round = 0; round < 2; ++round) {
      upper.spread(all_, pivots_), lower.spread(all_, pivots_ + kPivots / 2);
      add_up();
      narrow(&upper, margin), narrow(&lower, -less);
    }
    for (int i = 0; i < spare; ++i) {
      int above = kProbes, below = 0;
      while (above > 0 && !(probes_[above - 1] > upper.high)) --above;
      while (below < kProbes && !(probes_[below] < lower.low)) ++below;
      upper.high = above > 0 ? probes_[above - 1] : INFINITY;
      lower.low = below < kProbes ? probes_[below] : kLowest;
    }
    if (by_logit_) return {{nextafterf(upper.high, INFINITY), INFINITY}, {lower.low, INFINITY}};
    const float centre = base_ + centre_ / c_, more = 1.25f * float(deviations) * centre_error_;
    const float inner = (-upper.high - more) / c_, outer = (-lower.low + more) / c_;
    auto up_to = [&](float x) { return x >= base_ ? INFINITY : x; };  // `base` is the largest of all
    // The first may be empty.
    return {{centre - inner, up_to(centre + inner)}, {centre - outer, up_to(centre + outer)}};
  }

 private:
  static double sum(V x) { return reduce_sum(pairs_of(x)); }

  M in_anchor(V y) const { return both(at_least(y, broadcast(anchor_low_)), at_least(broadcast(anchor_high_), y)); }

  void believe(float centre, float centre_error) {
    need_ = needed(cut_, whole_);
    if (int(cut_.order) == kByLogit) return;
    by_logit_ = false, centre_ = centre, centre_error_ = centre_error;
    for (int64_t i = 0; i < n_; i += kLanes) {
      const V distance = load(ws_.key_y + i) - centre;
      store(ws_.key + i, -max_of(distance, -distance));
    }
  }

  // As far as the sample says, the edge lies at or above `low` and below `high`.
  struct Cell {
    float low = kLowest, high = INFINITY;
    void spread(Cell all, float* pivots) const {
      const float from = low == kLowest ? all.low : low, to = high == INFINITY ? all.high : high;
      for (int i = 0; i < kPivots / 2; ++i) pivots[i] = to - (to - from) * float(i + 1) / float(kPivots / 2 + 1);
    }
  };

  // Do sums, in units of the sample, and `more` mass at the same place reach the need of the cut?
  bool reached(double mass, double moment, double more) const {
    const double y = mass > 0 ? moment / mass : 0;
    const Sums part = {int(cut_.measure) == kCount ? (mass + more) * each_ : whole_.n, (mass + more) * each_,
                       (moment + more * y) * each_};
    return mass + more > 0 && reaches(cut_, part, whole_, need_);
  }

  void narrow(Cell* cell, double more) const {
    for (int p = 0; p < kPivots; ++p) {
      if (reached(mass_[p] + off_mass_, moment_[p] + off_moment_, more))
        cell->low = fmaxf(cell->low, pivots_[p]);
      else
        cell->high = fminf(cell->high, pivots_[p]);
    }
  }

  // Pivots from a few keys of the sample, about as many keys between each two.
  void spread_pivots() {
    probe(ws_.key, sampled_, probes_);
    for (int p = 0; p < kPivots; ++p) pivots_[p] = probes_[4 * p + 2];
    all_ = {probes_[kProbes - 1], by_logit_ ? base_ : 0.0f};
  }

  // The sums over the keys at or above each pivot.
  void add_up() {
    if (measures_moment(cut_))
      add_up_in<true>();
    else
      add_up_in<false>();
  }

  template <bool kMoment>
  void add_up_in() {
    V mass[kPivots], moment[kPivots], pivot[kPivots];
    for (int p = 0; p < kPivots; ++p) mass[p] = moment[p] = broadcast(0.0f), pivot[p] = broadcast(pivots_[p]);
    for (int64_t i = 0; i < n_; i += kLanes) {
      const V key = load(ws_.key + i), w = load(ws_.key_w + i), wy = kMoment ? w * load(ws_.key_y + i) : w;
      for (int p = 0; p < kPivots; ++p) {
        const M in = at_least(key, pivot[p]);
        mass[p] = add_where(in, mass[p], w);
        if (kMoment) moment[p] = add_where(in, moment[p], wy);
      }
    }
    for (int p = 0; p < kPivots; ++p) {
      mass_[p] = sum(mass[p]);
      moment_[p] = kMoment ? sum(moment[p]) * kLn2 : 0;
    }
  }

  // The standard deviation of the estimated mass above an edge at `middle`, and the mass of two tokens more.
  double error_at(float middle) const {
    V up = broadcast(0.0f), up2 = broadcast(0.0f), down = broadcast(0.0f), down2 = broadcast(0.0f),
      count = broadcast(0.0f), between2 = broadcast(0.0f);
    for (int64_t i = 0; i < sampled_; i += kLanes) {
      const V w = load(ws_.key_w + i);
      const V part = select_or_zero(at_least(load(ws_.key + i), broadcast(middle)), w), other = w - part;
      if (anchored_) {  // what lies between the two edges
        const V known = select_or_zero(in_anchor(load(ws_.key_y + i)), w);
        between2 += (part - known) * (part - known);
      }
      up += part, up2 += part * part, down += other, down2 += other * other;
      count += select_or_zero(less(broadcast(0.0f), w), broadcast(1.0f));
    }
    const double mass = sum(up) + sum(down), share = mass > 0 ? sum(up) / mass : 0;
    if (anchored_) return sqrt(sum(between2)) + 2 * mass / fmax(sum(count), 1.0);
    const double variance = (1 - share) * (1 - share) * sum(up2) + share * share * sum(down2);
    return sqrt(variance) + 2 * mass / fmax(sum(count), 1.0);
  }

  Cut cut_;
  const Workspace& ws_;
  const int every_;        // one group in `every_` is sampled: 1 or 2
  double each_;            // the number of tokens that a token of the sample stands for
  const int64_t sampled_;  // tokens in the sample
  const float base_, c_;   // the scale
  int64_t n_;              // tokens in the sample and heavy ones
  bool by_logit_ = true;
  float centre_ = 0;  // of a typicality order, as estimated so far
  Sums whole_;
  double need_;
  float centre_error_ = 0;
  bool anchored_ = false;
  float anchor_low_ = 0, anchor_high_ = 0;  // an interval of y whose exact sums are known,
  double off_mass_ = 0, off_moment_ = 0;    // and those less the sample's, in units of the sample
  Cell all_;                                // about all keys of the sample
  float probes_[kProbes];                   // descending
  float pivots_[kPivots];
  double mass_[kPivots], moment_[kPivots];
};

}  // namespace FD_TARGET
}  // namespace fastdecode
