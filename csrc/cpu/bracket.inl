// What: for prefixes that keep many tokens: a guess from a sample of the row of where the edge is, and one pass over the row
//   that adds up all survivors and those above the guess, and gathers the few that are near it.
// Contract: the guess may be wrong; whoever uses it looks at the exact sums and falls back if the edge is not there. The
//   answer never depends on the guess.
// Idea: 1. the heaviest tokens, gathered, count for themselves, and 16 of each group of 256 stand for the others; 2. sums above
//   a few pivots at a time close in on the edge, and on the edges if the sums were some standard deviations larger or
//   smaller; 3. the pass.
// Who does what: one thread. Numbers: as in kernels.inl. Randomness: none, the places of the sample are fixed.
// Cost: the guess four looks at a sixteenth of the row; the pass a third more than row_sums. Limits: none.

#include "search.inl"

namespace fastdecode {
namespace FD_TARGET {

// What tokens are ordered by, at a scale: their logit, or how near they are to the centre of a typicality order.
struct Keys {
  bool by_logit;
  float centre;  // the mean of y under p
  FD_FN V of(const Keys& keys, V x, V y) {
    if (keys.by_logit) return x;
    const V distance = y - keys.centre;
    return -max_of(distance, -distance);
  }
  FD_FN float centre_of(const Sums& whole) { return float(whole.moment / whole.mass / kLn2); }
};

// The edge is guessed to part the logits of `wide` outside of `above`; those of `above` to be kept.
struct Bracket {
  Interval above, wide;
};

constexpr int kPivots = 8, kProbes = 4 * kPivots;
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
    const V least = all(least_drop(c));
    const float bottom = interval.bottom();
    row.each(-INFINITY, [&](int64_t g, auto x) FD_INLINE {
      if (g % every_) return;
      for (int i = 0; i < kStretch; i += kLanes) {
        const V v = x[int(g / every_ * 7 % (kGroupSize / kStretch)) * kStretch + i], d = max_of(v - base, least);
        const M light = both(Interval::has(v, bottom, interval.hi), less(v, all(bound)));
        const int64_t at = g / every_ * kStretch + i;
        store(ws.key + at, v), store(ws.key_y + at, d * c);
        store(ws.key_w + at, zero_unless(light, by_count ? all(1.0f) : exp2_of(d, all(c))));
      }
    });
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
    if (keys_.by_logit) return {{nextafterf(upper.high, INFINITY), INFINITY}, {lower.low, INFINITY}};
    const float centre = base_ + keys_.centre / c_, more = 1.5f * float(deviations) * centre_error_;
    const float inner = (-upper.high - more) / c_, outer = (-lower.low + more) / c_;
    auto up_to = [&](float x) { return x >= base_ ? INFINITY : x; };  // `base` is the largest of all
    return {{centre - inner, up_to(centre + inner)},
            {centre - outer, up_to(centre + outer)}};  // the first may be empty
  }

 private:
  static double sum(V x) { return sum_of_lanes(pairs_of(x)); }

  void believe(float centre, float centre_error) {
    need_ = needed(cut_, whole_);
    if (int(cut_.order) == kByLogit) return;
    keys_ = {false, centre}, centre_error_ = centre_error;
    const V nothing = all(0.0f);
    for (int64_t i = 0; i < n_; i += kLanes) store(ws_.key + i, Keys::of(keys_, nothing, load(ws_.key_y + i)));
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
      if (reached(mass_[p], moment_[p], more))
        cell->low = fmaxf(cell->low, pivots_[p]);
      else
        cell->high = fminf(cell->high, pivots_[p]);
    }
  }

  // Pivots from a few keys of the sample, about as many keys between each two.
  void spread_pivots() {
    for (int i = 0; i < kProbes; ++i) {  // insertion sort, descending
      const float key = ws_.key[(2 * i + 1) * sampled_ / (2 * kProbes)];
      int j = i;
      for (; j > 0 && probes_[j - 1] < key; --j) probes_[j] = probes_[j - 1];
      probes_[j] = key;
    }
    for (int p = 0; p < kPivots; ++p) pivots_[p] = probes_[4 * p + 2];
    all_ = {probes_[kProbes - 1], keys_.by_logit ? base_ : 0.0f};
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
      const V key = load(ws_.key + i), w = load(ws_.key_w + i);
      for (int p = 0; p < kPivots; ++p) {
        const V part = zero_unless(at_least(key, pivot[p]), w);
        mass[p] += part;
        if (kMoment) moment[p] += part * load(ws_.key_y + i);
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
    V up = all(0.0f), up2 = all(0.0f), down = all(0.0f), down2 = all(0.0f), count = all(0.0f);
    for (int64_t i = 0; i < sampled_; i += kLanes) {
      const V w = load(ws_.key_w + i), part = zero_unless(at_least(load(ws_.key + i), all(middle)), w),
              other = w - part;
      up += part, up2 += part * part, down += other, down2 += other * other;
      count += zero_unless(less(all(0.0f), w), all(1.0f));
    }
    const double mass = sum(up) + sum(down), share = mass > 0 ? sum(up) / mass : 0;
    const double variance = (1 - share) * (1 - share) * sum(up2) + share * share * sum(down2);
    return sqrt(variance) + 2 * mass / fmax(sum(count), 1.0);
  }

  Cut cut_;
  const Workspace& ws_;
  const int every_;        // the sample is of every so many groups:
  double each_;            // one of its tokens stands for so many,
  const int64_t sampled_;  // and it has so many
  const float base_, c_;
  int64_t n_;
  Keys keys_{true, 0};
  Sums whole_;
  double need_;
  float centre_error_ = 0;
  Cell all_;               // all of the sample, more or less
  float probes_[kProbes];  // descending
  float pivots_[kPivots];
  double mass_[kPivots], moment_[kPivots];
};

// Floats in their order, as integers, and back.
static int64_t rank_of(float x) {
  const int32_t bits = int32_t(bits_of_float(x));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
static float float_at(int64_t rank) {
  const int32_t bits = int32_t(rank);
  return float_of_bits(uint32_t(bits ^ ((bits >> 31) & 0x7fffffff)));
}

// All logits whose keys are at least `edge`; nothing if it is hard to say.
static Interval logits_of(Keys keys, float edge, float base, float c) {
  if (keys.by_logit) return {edge, INFINITY};
  auto inside = [&](float x) { return Keys::of(keys, all(x), scaled(all(x), all(base), all(c)))[0] >= edge; };
  const float centre = base + keys.centre / c;
  if (!inside(centre)) return {INFINITY, -INFINITY};
  // Keys rise up to the centre and fall behind it: bisection over the floats, in their order as integers.
  auto last_from = [&](float from, float to) {  // the farthest float inside, on the way to one
    if (inside(to)) return to;
    int64_t in = rank_of(from), out = rank_of(to);
    while (in - out > 1 || out - in > 1) {
      const int64_t middle = in + (out - in) / 2;
      (inside(float_at(middle)) ? in : out) = middle;
    }
    return float_at(in);
  };
  const float top = last_from(centre, base);
  return {last_from(centre, kLowest), top == base ? INFINITY : top};  // `base` is the largest of all
}

struct Split {
  Sums whole, above;
  float highest = -INFINITY;  // the largest logit above
  int64_t between = 0;        // tokens gathered
};

// 3. Adds up the survivors, and those above the bracket also by group, and gathers the logits of those inside it: those of group
//    g from run_start[g] on. With kWhole, the moment of the survivors; with kAbove, of those above.
template <bool kWhole, bool kAbove>
static Split split(const Row& row, const Workspace& ws, float base, float c, Interval interval, Bracket bracket) {
  const V base_v = all(base), c_v = all(c), least = all(least_drop(c));
  const Interval wide{fmaxf(bracket.wide.bottom(), interval.lo), fminf(bracket.wide.hi, interval.hi)};
  const Interval inner{fmaxf(bracket.above.lo, wide.lo), fminf(bracket.above.hi, wide.hi)};
  const V low = all(wide.lo), high = all(wide.hi), inner_low = all(inner.lo), inner_high = all(inner.hi);
  const float bottom = interval.bottom();
  Split found;
  D masses{}, moments{}, inner_masses{}, inner_moments{};
  int64_t count = 0, inner_count = 0;
  V highest = all(-INFINITY);
  row.each(-INFINITY, [&](int64_t g, auto x) FD_INLINE {
    ws.group_mass[g] = 0;
    ws.run_start[g] = int32_t(found.between);
    if (!(ws.group_max[g] >= bottom)) return;
    D inner_mass{};
    // Most groups have nothing to cut off at the upper side, and with all tokens alive nothing to leave out.
    auto add_up = [&](auto one_sided, auto open) FD_INLINE {
      constexpr bool kOneSided = decltype(one_sided)::value, kOpen = decltype(open)::value;
      for (int chunk = 0; chunk < kGroupSize; chunk += kChunk) {
        V mass = all(0.0f), moment = all(0.0f), mass_in = all(0.0f), moment_in = all(0.0f);
        for (int i = chunk; i < chunk + kChunk; i += kStep * kLanes) {
          V v[kStep], d[kStep], w[kStep];
          for (int k = 0; k < kStep; ++k) v[k] = held(x[i + k * kLanes]);
          for (int k = 0; k < kStep; ++k) d[k] = max_of(v[k] - base_v, least);
          exp2_of<kStep>(d, c_v, w);
          for (int k = 0; k < kStep; ++k) {
            M in = at_least(v[k], low), in_inner = at_least(v[k], inner_low);
            if (!kOneSided) {
              in = both(in, at_least(high, v[k])), in_inner = both(in_inner, at_least(inner_high, v[k]));
              highest = max_of(highest, choose(in_inner, v[k], all(-INFINITY)));
            }
            if (!kOpen) {
              const M alive = Interval::has(v[k], bottom, interval.hi);
              count += __builtin_popcount(bits_of(alive));
              w[k] = zero_unless(alive, w[k]);
            }
            const V part = zero_unless(in_inner, w[k]);
            inner_count += __builtin_popcount(bits_of(in_inner));
            mass += w[k], mass_in += part;
            if (kWhole) moment += w[k] * d[k];
            if (kAbove) moment_in += part * d[k];
            found.between += pack_few(v[k], bits_of(first_only(in, in_inner)), ws.x + found.between);
          }
        }
        masses += pairs_of(mass), inner_mass += pairs_of(mass_in);
        if (kWhole) moments += pairs_of(moment);
        if (kAbove) inner_moments += pairs_of(moment_in);
      }
    };
    const std::true_type yes;
    const std::false_type no;
    if (!interval.open()) {
      add_up(no, no);
    } else if (ws.group_max[g] > inner.hi) {
      add_up(no, yes);
    } else {
      add_up(yes, yes);
      if (ws.group_max[g] >= inner.lo) highest = max_of(highest, all(ws.group_max[g]));
    }
    ws.group_mass[g] = sum_of_lanes(inner_mass);
    inner_masses += inner_mass;
  });
  ws.run_start[row.groups()] = int32_t(found.between);
  const double unit = double(c) * kLn2;
  found.whole = {double(count), sum_of_lanes(masses), kWhole ? sum_of_lanes(moments) * unit : double(NAN)};
  found.above = {double(inner_count), sum_of_lanes(inner_masses),
                 kAbove ? sum_of_lanes(inner_moments) * unit : double(NAN)};
  found.highest = largest_lane(highest);
  return found;
}

static Split split_for(const Cut& cut, const Row& row, const Workspace& ws, float base, float c, Interval interval,
                       Bracket bracket) {
  auto run = measures_moment(cut) ? split<true, true> : wants_moment(cut) ? split<true, false> : split<false, false>;
  return run(row, ws, base, c, interval, bracket);
}

}  // namespace FD_TARGET
}  // namespace fastdecode
