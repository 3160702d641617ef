// What: for prefixes that keep many tokens: a guess from a sample of the row of where the edge is.
// Contract: the guess may be wrong; whoever uses it must look at exact sums. Works in the key arrays of the workspace.
// Idea: 1. the heaviest tokens, gathered, count for themselves, and 16 of each or every other group of 256 stand for the others;
//   2. sums above a few pivots at a time close in on the edge, and on the edges if the sums were some standard
//   deviations larger or smaller.
// Who does what: one thread. Numbers: rough ones will do. Randomness: none, the places of the sample are fixed.
// Cost: the sample, and four looks at it. Limits: none.

#include "search.inl"

namespace fastdecode {
namespace FD_TARGET {

// What tokens are ordered by: their logit, or how near they are to the centre of a typicality order.
struct Keys {
  bool by_logit = true;
  float base = 0, c = 0;  // the scale
  float centre = 0;       // the mean of y under p

  // Not from y: that is cut off where exponentials vanish, and far tokens would be tied.
  FD_FN V of(const Keys& keys, V x) {
    if (keys.by_logit) return x;
    const V distance = (x - keys.base) * keys.c - keys.centre;
    return max_of(-max_of(distance, -distance), all(kLowest));
  }
  FD_FN float centre_of(const Sums& whole) { return float(whole.moment / whole.mass / kLn2); }
};

// The edge is guessed to part the logits of `wide` outside of `above`; those of `above` to be kept.
struct Bracket {
  Interval above, wide;
};

// What an attempt that failed has shown: the sums over an interval near the edge. n = 0: nothing yet.
struct Seen {
  Interval interval;
  Sums sums;
};

constexpr int kStretch =
    16;  // tokens of each group in the sample: consecutive ones, at another place in the next group
static_assert(kStretch % kLanes == 0, "the sample is taken in whole vectors");

class Guess {
 public:
  // 1. `heavy` gathered tokens are all survivors at or above `bound`.
  Guess(const Cut& cut, const Row& row, const Workspace& ws, int64_t heavy, float bound, float base, float c,
        Interval interval)
      : cut_(cut),
        ws_(ws),
        every_(row.groups() < 256 ? 1 : 2),
        each_(double(kGroupSize) / kStretch * every_),
        sampled_((row.groups() + every_ - 1) / every_ * kStretch),
        base_(base),
        c_(c) {
    const bool by_count = int(cut.measure) == kCount;
    const float bottom = interval.bottom();
    row.each(-INFINITY, [&](int64_t g, auto x) FD_INLINE {
      if (g & (every_ - 1)) return;
      const int64_t nth = every_ == 2 ? g / 2 : g;
      const int first = int(nth * 7 % (kGroupSize / kStretch)) * kStretch;
      for (int i = 0; i < kStretch; i += kLanes) store(ws.key + nth * kStretch + i, x[first + i]);
    });
    const Weights<kFar> weights(base, c);
    for (int64_t i = 0; i < sampled_; i += kStep * kLanes) {  // and up to three stretches more, of no account
      V x[kStep], d[kStep], w[kStep];
      for (int k = 0; k < kStep; ++k) x[k] = load(ws.key + i + k * kLanes);
      weights.of<kStep, false>(x, d, w);
      for (int k = 0; k < kStep; ++k) {
        const M light = both(Interval::has(x[k], bottom, interval.hi), less(x[k], all(bound)));
        store(ws.key_y + i + k * kLanes, d[k] * c);
        store(ws.key_w + i + k * kLanes, zero_unless(light, by_count ? all(1.0f) : w[k]));
      }
    }
    n_ = sampled_ + (heavy + kLanes - 1) / kLanes * kLanes;
    for (int64_t i = 0; i < heavy; i += kLanes) {
      const M real = less(count_up(), all(float(heavy - i)));
      const V w = by_count ? all(1.0f) : load(ws.w + i);
      store(ws.key + sampled_ + i, load(ws.x + i)), store(ws.key_y + sampled_ + i, load(ws.y + i));
      store(ws.key_w + sampled_ + i, zero_unless(real, w / float(each_)));  // in units of the sample's
    }
    // What the sample says of all survivors.
    V mass = all(0.0f), moment = all(0.0f), squares = all(0.0f);
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

  // What a pass over the row has shown: the sums over all survivors. The sample then stands for what the heavy tokens leave.
  void learn(const Sums& whole) {
    V light = all(0.0f), heavy = all(0.0f);
    for (int64_t i = 0; i < sampled_; i += kLanes) light += load(ws_.key_w + i);
    for (int64_t i = sampled_; i < n_; i += kLanes) heavy += load(ws_.key_w + i);
    const bool by_count = int(cut_.measure) == kCount;
    const double known = sum(heavy) * each_, rest = (by_count ? whole.n : whole.mass) - known;
    const double each = fmax(rest, 0.001 * known) / fmax(sum(light), 1e-30);
    for (int64_t i = sampled_; i < n_; i += kLanes) store(ws_.key_w + i, load(ws_.key_w + i) * float(each_ / each));
    each_ = each, whole_ = by_count ? Sums{whole.n, whole.n, 0} : whole;
    believe(Keys::centre_of(whole), 0);
  }

  // And of an interval: exact sums over it. How much the sample errs there, it errs by elsewhere too; what is left is how much it
  // errs between that interval's edges and the one that is looked for.
  void anchor(const Seen& seen) {
    const Sums& exact = seen.sums;
    anchor_low_ = (seen.interval.lo - base_) * c_, anchor_high_ = (seen.interval.hi - base_) * c_, anchored_ = true;
    V mass = all(0.0f), moment = all(0.0f);
    for (int64_t i = 0; i < n_; i += kLanes) {
      const V y = load(ws_.key_y + i), w = zero_unless(in_anchor(y), load(ws_.key_w + i));
      mass += w, moment += w * y;
    }
    off_mass_ = (int(cut_.measure) == kCount ? exact.n : exact.mass) / each_ - sum(mass);
    off_moment_ = measures_moment(cut_) ? exact.moment / each_ - sum(moment) * kLn2 : 0;
  }

  // 2. Right unless the sample errs by more than so many standard deviations and, `spare` times on either side, by what one of 32
  //    tokens would change: a few heavy tokens can hide how much it errs.
  Bracket bracket(double deviations, int spare) {
    spread_pivots();
    add_up();
    Cell middle;
    narrow(&middle, 0);
    const double margin = deviations * error_at(middle.low == kLowest ? middle.high : middle.low);
    Cell upper, lower;
    narrow(&upper, margin), narrow(&lower, -margin);
    double less =
        margin;  // more than the row holds may be asked for: then with less certainty, rather than the whole rest of it
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
    return {{centre - inner, up_to(centre + inner)},
            {centre - outer, up_to(centre + outer)}};  // the first may be empty
  }

 private:
  static double sum(V x) { return sum_of_lanes(pairs_of(x)); }

  M in_anchor(V y) const { return both(at_least(y, all(anchor_low_)), at_least(all(anchor_high_), y)); }

  void believe(float centre, float centre_error) {
    need_ = needed(cut_, whole_);
    if (int(cut_.order) == kByLogit) return;
    by_logit_ = false, centre_ = centre, centre_error_ = centre_error;
    for (int64_t i = 0; i < n_; i += kLanes) {
      const V distance = load(ws_.key_y + i) - centre;
      store(ws_.key + i, -max_of(distance, -distance));
    }
  }

  // A key that the edge lies at or above, and one that it lies below, by what the sample says.
  struct Cell {
    float low = kLowest, high = INFINITY;
    void spread(Cell all, float* pivots) const {
      const float from = low == kLowest ? all.low : low, to = high == INFINITY ? all.high : high;
      for (int i = 0; i < kPivots / 2; ++i) pivots[i] = to - (to - from) * float(i + 1) / float(kPivots / 2 + 1);
    }
  };

  // Do sums in units of the sample, with so much more mass at the same place, reach what the cut needs?
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
    for (int p = 0; p < kPivots; ++p) mass[p] = moment[p] = all(0.0f), pivot[p] = all(pivots_[p]);
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

  // The standard deviation of the mass above an edge at `middle`, which errs by what is on either side of it; and a few tokens'
  // worth more.
  double error_at(float middle) const {
    V up = all(0.0f), up2 = all(0.0f), down = all(0.0f), down2 = all(0.0f), count = all(0.0f), between2 = all(0.0f);
    for (int64_t i = 0; i < sampled_; i += kLanes) {
      const V w = load(ws_.key_w + i);
      const V part = zero_unless(at_least(load(ws_.key + i), all(middle)), w), other = w - part;
      if (anchored_) {  // what lies between the two edges
        const V known = zero_unless(in_anchor(load(ws_.key_y + i)), w);
        between2 += (part - known) * (part - known);
      }
      up += part, up2 += part * part, down += other, down2 += other * other;
      count += zero_unless(less(all(0.0f), w), all(1.0f));
    }
    const double mass = sum(up) + sum(down), share = mass > 0 ? sum(up) / mass : 0;
    if (anchored_) return sqrt(sum(between2)) + 2 * mass / fmax(sum(count), 1.0);
    const double variance = (1 - share) * (1 - share) * sum(up2) + share * share * sum(down2);
    return sqrt(variance) + 2 * mass / fmax(sum(count), 1.0);
  }

  Cut cut_;
  const Workspace& ws_;
  const int every_;        // the sample is of every so many groups, 1 or 2:
  double each_;            // one of its tokens stands for so many,
  const int64_t sampled_;  // and it has so many
  const float base_, c_;
  int64_t n_;
  bool by_logit_ = true;
  float centre_ = 0;  // of a typicality order, by what is known
  Sums whole_;
  double need_;
  float centre_error_ = 0;
  bool anchored_ = false;
  float anchor_low_ = 0, anchor_high_ = 0;  // an interval of y,
  double off_mass_ = 0, off_moment_ = 0;    // and what the sample lacks there, in its own units
  Cell all_;                                // all of the sample, more or less
  float probes_[kProbes];                   // descending
  float pivots_[kPivots];
  double mass_[kPivots], moment_[kPivots];
};

}  // namespace FD_TARGET
}  // namespace fastdecode
