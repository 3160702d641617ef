// What: the survivors of one row, and the verbs that run a plan on them: measure, search, narrow.
// Contract: finite logits and -inf (a row with a NaN or +inf never gets here); ties stay or go together, because all that a
//   cut can do is narrow the interval [lo, hi] of logits.
// Idea: 1. measure: sums over the survivors, kept from one cut to the next while they are valid; 2. search: a floor is a
//   closed form; a prefix looks first at the tokens above a bound that a few groups' maxima reach, and only if the
//   edge is not among them at the whole row, once more, with a guess of where it is (bracket.inl); 3. narrow: few
//   survivors lie gathered in the workspace from then on, and no later cut touches the row again; many stay an interval.
// Who does what: one thread. Numbers: sums in double; edges are logits of the row, compared exactly.
// Randomness: none. Cost: passes over the row: 1 for a floor without sums, 2 for few survivors, 3 for many. Limits: none.

#include "bracket.inl"

namespace fastdecode {
namespace FD_TARGET {

FD_FN float scale_of(double temperature) { return float(1.0 / (temperature * kLn2)); }

// Sums are taken at a scale: of y = (x - base) * c, for a temperature. c = 0: of nothing yet.
struct Scale {
  float c = 0, base = 0;
  bool operator==(const Scale& other) const { return c == other.c && base == other.base; }
  bool operator!=(const Scale& other) const { return !(*this == other); }
};

// keeps_many(): how much mass the groups with low maxima, as these tell it, must hold beside what the cut removes.
constexpr double kFlat = 0.15;

// The smallest float >= edge.
FD_FN float round_up(double edge) {
  const float f = float(edge);
  return double(f) < edge ? nextafterf(f, INFINITY) : f;
}

class Survivors {
 public:
  Survivors(const Row& row, const Workspace& ws, const Extent& extent, int64_t alive)
      : row_(row), ws_(ws), max_(extent.max), least_(extent.least), top_(extent.max), n_(alive), alive_(alive) {}

  bool gathered() const { return gathered_; }
  Interval interval() const { return interval_; }
  float top() const { return top_; }  // the largest survivor

  // The row's maximum is the base as long as the survivors' exponentials do not vanish beside it: sums outlive cuts that way.
  Scale at(double temperature) const {
    const float c = scale_of(temperature);
    return {c, (max_ - top_) * c > 16 ? top_ : max_};
  }

  int64_t count() {
    if (n_ < 0) sums_at(at(1));
    return n_;
  }

  void run(const Cut& cut) {
    if (cut.temperature == 0 || n_ == 1) return;  // a greedy row has nothing left to cut
    settle_masses();
    if (!gathered_ && n_ >= 0 && n_ <= few()) narrow_gathered(gather(row_, ws_, interval_), interval_);
    if (int(cut.kind) == kFloor)
      narrow(floor_edge(cut));
    else
      prefix(cut);
  }

  // measure: sums over the survivors; with what the draw needs in the workspace: y and w of gathered ones, the masses of
  // their groups otherwise.
  const Sums& sums_at(Scale s) {
    if (gathered_) {
      if (arrays_at_ != s) sums_ = gathered_sums(ws_, n_, s.base, s.c), arrays_at_ = s;
      sums_are_at_ = s;
    } else if (sums_are_at_ != s || masses_at_ != s) {
      add_up(s, false);
    }
    return sums_;
  }

  // After a split, the masses of most groups lack the survivors that it gathered near the lower edge. A draw needs them in a
  // few groups only; where more is wanted, or the gathered tokens are about to be lost, all are added.
  bool masses_lack_edge() const { return lacking_up_to_ > -INFINITY; }
  void settle_masses() {
    for (int64_t g = 0; masses_lack_edge() && g < row_.groups(); ++g)
      if (lacks_edge(g)) ws_.group_mass[g] += edge_mass(g);
    lacking_up_to_ = -INFINITY;
  }
  double mass_of(int64_t g) const { return ws_.group_mass[g] + (lacks_edge(g) ? edge_mass(g) : 0); }
  double most_mass_of(int64_t g) const {  // no less than that
    const double most = double(heaviest_lacking_) * double(ws_.run_start[g + 1] - ws_.run_start[g]);
    return ws_.group_mass[g] + (lacks_edge(g) ? most : 0);
  }

  // Sums over the whole row, whatever survives; the base is the row's maximum.
  const Sums& whole_at(double temperature) {
    const float c = scale_of(temperature);
    if (whole_c_ != c)
      whole_ = row_sums(row_, ws_, max_, least_, c, {}, true), whole_.n = double(alive_), whole_c_ = c, masses_at_ = {};
    return whole_;
  }

  // The rank-th largest logit of the survivors, or -inf if there are fewer.
  float nth_largest(double rank) {
    if (double(count()) < rank) return -INFINITY;
    Survivors scout(*this);  // shares the workspace: what is gathered there, it leaves in place or is not needed
    Cut cut{};
    cut.kind = kPrefix, cut.measure = kCount, cut.need = float(rank), cut.keep = 1, cut.within = INFINITY,
    cut.temperature = 1;
    if (gathered_) return search_gathered(cut, Sums{double(n_)}, {}).key;
    scout.prefix(cut);
    masses_at_ = {};
    return scout.interval_.lo;
  }

 private:
  float floor_edge(const Cut& cut) {
    const double t = cut.temperature;
    const Scale s = at(t);
    Whole whole;
    if (wants_sums(cut)) {
      const Sums& sums = valid_sums_at(s, wants_moment(cut));
      whole.ln_mass = log(sums.mass) - (double(top_) - double(s.base)) / t;
      whole.entropy = entropy_of(sums);
    }
    if (cut.w_sd != 0 || cut.w_p2 != 0) {
      const Interval counted = without_masked(interval_, top_, row_.dtype);
      const Spread spread = gathered_ ? gathered_spread(ws_, n_, s.base, s.c, counted)
                                      : row_spread(row_, s.base, s.c, counted, cut.w_p2 != 0);
      const double squares = spread.squares - spread.sum * spread.sum / spread.n;
      whole.sd = spread.n > 1 ? sqrt(fmax(squares, 0.0) / (spread.n - 1)) / t : 0.0;
      if (cut.w_p2 != 0) whole.ln_p2 = log(spread.mass2) - 2 * log(valid_sums_at(s, false).mass);
    }
    const float edge = round_up(double(top_) + t * floor_of(cut, whole));
    return cut.keep > 1 ? fminf(edge, nth_largest(cut.keep)) : edge;
  }

  // One pass over the row.
  void add_up(Scale s, bool moment) {
    found_sums(row_sums(row_, ws_, s.base, least_, s.c, interval_, moment), s);
    masses_at_ = s;
  }

  void found_sums(const Sums& sums, Scale s) {
    sums_ = sums, sums_are_at_ = s;
    if (n_ < 0) n_ = int64_t(sums.n);
    sums_.n = double(n_);
    if (interval_.open() && has_moment(sums)) whole_ = sums_, whole_c_ = s.c;
  }

  static bool has_moment(const Sums& sums) { return sums.moment == sums.moment; }

  bool has_sums_at(Scale s, bool moment) const { return sums_are_at_ == s && (!moment || has_moment(sums_)); }

  // The sums that a search left over are as good as new ones.
  const Sums& valid_sums_at(Scale s, bool moment) {
    if (has_sums_at(s, moment)) return sums_;
    if (gathered_) return sums_at(s);
    add_up(s, moment);
    return sums_;
  }

  void prefix(const Cut& cut) {
    const bool all_exist = !(cut.within < float(count()));
    if (all_exist && (cut.need == INFINITY || (int(cut.measure) == kCount && double(cut.need) >= double(count()))))
      return;
    const Scale s = at(cut.temperature);
    if (!all_exist) return prefix_within(cut, s);
    const bool may_guess = !gathered_ && row_.groups() >= 32, many = may_guess && keeps_many(cut, s);
    if (many && prefix_by_bracket(cut, s)) return;
    const Sums whole = wants_sums(cut) ? valid_sums_at(s, wants_moment(cut)) : Sums{double(count())};
    const Keys keys = keys_of(cut, whole, s);
    if (gathered_) {
      sums_at(s);
      return narrow_to(search_gathered(cut, whole, keys), n_, keys, s);
    }
    if (prefix_near_top(cut, whole, keys, s)) return;
    if (may_guess && !many && prefix_by_bracket(cut, s)) return;
    const int64_t n = gather(row_, ws_, interval_);  // exact whatever happens
    gathered_sums(ws_, n, s.base, s.c);
    narrow_to(search_arrays(cut, whole, keys, n), n, keys, s);
  }

  static Keys keys_of(const Cut& cut, const Sums& whole, Scale s) {
    if (int(cut.order) == kByLogit) return {};
    return {false, s.base, s.c, Keys::centre_of(whole)};
  }

  // A guess from the groups' maxima, whether the edge is far from the top. It decides which way is tried first, no more.
  bool keeps_many(const Cut& cut, Scale s) const {
    if (int(cut.measure) != kMass) return false;
    const float bound = bound_by_groups(ws_.group_max, row_.groups(), row_.groups() / 3);
    const Weights<kFar> weights(s.base, s.c);
    V top = all(0.0f), rest = all(0.0f);
    for (int64_t g = 0; g + kLanes <= row_.groups(); g += kLanes) {
      const V x = load(ws_.group_max + g), w = weights.of(x);
      const V part = zero_unless(at_least(x, all(bound)), w);
      top += part, rest += w - part;
    }
    const double of_top = sum_of_lanes(pairs_of(top)), of_rest = sum_of_lanes(pairs_of(rest));
    return of_rest > kFlat * (1 - double(cut.need)) * (of_top + of_rest);
  }

  // Only the `within` largest exist for this cut; of a straddling group of ties, its share.
  void prefix_within(const Cut& cut, Scale s) {
    const float boundary = nth_largest(cut.within);
    const int64_t n = gathered_ ? n_ : gather(row_, ws_, {boundary, interval_.hi});
    narrow_gathered(n, {boundary, interval_.hi});
    Sums whole = sums_at(s), tied;
    for (int64_t i = 0; i < n_; ++i)
      if (ws_.x[i] == boundary) add(&tied, ws_.w[i], ws_.y[i]);
    const double share = (double(cut.within) - (double(n_) - tied.n)) / tied.n;
    whole.mass -= (1 - share) * tied.mass, whole.moment -= (1 - share) * tied.moment;
    for (int64_t i = 0; i < n_; ++i)
      if (ws_.x[i] == boundary) ws_.w[i] *= float(share);
    const Edge edge = search_gathered(cut, whole, {});
    if (edge.stopped) narrow_gathered(n_, {edge.key, interval_.hi});
    sums_are_at_ = arrays_at_ = {};  // the weights in the workspace and the sums of the search were shares
  }

  Edge search_gathered(const Cut& cut, const Sums& whole, Keys keys) {
    if (int(cut.measure) == kCount && arrays_at_.c == 0) sums_at(at(cut.temperature));
    return search_arrays(cut, whole, keys, n_);
  }

  // search among the n gathered tokens, whose y and w are in the workspace.
  Edge search_arrays(const Cut& cut, const Sums& whole, Keys keys, int64_t n, Sums before = {}, double share = NAN) {
    for (int64_t i = n; i < n + kLanes; ++i) ws_.x[i] = -INFINITY, ws_.w[i] = 0;
    if (keys.by_logit) return search(cut, whole, ws_, {ws_.x, ws_.w, ws_.y}, n, before, share);
    for (int64_t i = 0; i < n; i += kLanes) store(ws_.key + i, Keys::of(keys, load(ws_.x + i)));
    for (int64_t i = n; i < n + kLanes; ++i) ws_.key[i] = -INFINITY;
    return search(cut, whole, ws_, {ws_.key, ws_.w, ws_.y}, n, before, share);
  }

  // search among the tokens above a bound. False: the edge was not there, nothing has changed.
  bool prefix_near_top(const Cut& cut, const Sums& whole, Keys keys, Scale s) {
    const double need = needed(cut, whole);
    const bool by_count = int(cut.measure) == kCount;
    for (int64_t rank = by_count ? int64_t(fmin(fmax(double(cut.need), 1), 1e15)) : 64; rank <= 192 || (by_count && rank < row_.groups());
         rank *= 3) {
      float bound = bound_by_groups(ws_.group_max, row_.groups(), rank);
      if (bound == kLowest) return false;
      bound = fmaxf(bound, interval_.lo);
      const int64_t n = gather(row_, ws_, {bound, interval_.hi});
      Sums part = gathered_sums(ws_, n, s.base, s.c);
      int64_t near = n;
      if (!keys.by_logit) {
        // All tokens nearer to the centre than this are seen.
        const bool below = (bound - s.base) * s.c < keys.centre;
        const float farthest = bound == interval_.lo ? -INFINITY : below ? Keys::of(keys, all(bound))[0] : INFINITY;
        part = {}, near = 0;
        for (int64_t i = 0; i < n; i += kLanes) store(ws_.key + i, Keys::of(keys, load(ws_.x + i)));
        for (int64_t i = 0; i < n; ++i) {
          const float key = ws_.key[i];
          ws_.key[near] = key, ws_.key_w[near] = ws_.w[i], ws_.key_y[near] = ws_.y[i];
          if (key > farthest) add(&part, ws_.w[i], ws_.y[i]), ++near;
        }
      }
      if (reaches(cut, part, whole, need) || bound == interval_.lo) {
        if (keys.by_logit) {
          narrow_to(search_arrays(cut, whole, keys, n), n, keys, s);
        } else {
          for (int64_t i = near; i < near + kLanes; ++i) ws_.key[i] = -INFINITY, ws_.key_w[i] = ws_.key_y[i] = 0;
          narrow_to(search(cut, whole, ws_, {ws_.key, ws_.key_w, ws_.key_y}, near), n, keys, s);
        }
        return true;
      }
    }
    return false;
  }

  // search near where a sample has the edge, with one pass over the row. False: it was not there, nothing has changed.
  bool prefix_by_bracket(const Cut& cut, Scale s) {
    Seen seen;
    for (int attempt = 0; attempt < 3; ++attempt)
      if (prefix_in_bracket(cut, s, attempt, &seen)) return true;
    return false;
  }

  bool prefix_in_bracket(const Cut& cut, Scale s, int attempt, Seen* seen) {
    const float bound = bound_by_groups(ws_.group_max, row_.groups(), row_.groups() / 6);
    const int64_t heavy = bound > kLowest ? gather(row_, ws_, {fmaxf(bound, interval_.lo), interval_.hi}) : 0;
    gathered_sums(ws_, heavy, s.base, s.c);
    Guess guess(cut, row_, ws_, heavy, bound > kLowest ? bound : INFINITY, s.base, s.c, interval_);
    const bool known = has_sums_at(s, wants_moment(cut));
    if (known) guess.learn(sums_);
    if (seen->sums.n > 0) guess.anchor(*seen);
    const Bracket bracket = guess.bracket(1.8 + 2 * attempt, seen->sums.n > 0 ? 0 : 3 * attempt);
    const Split found = split_for(cut, row_, ws_, s.base, least_, s.c, interval_, bracket);
    masses_at_ = {};
    if (!known) found_sums(found.whole, s);

    const Keys keys = keys_of(cut, sums_, s);
    const double need = needed(cut, sums_);
    *seen = {bracket.above, found.above};
    if (found.above.n > 0 && reaches(cut, found.above, sums_, need)) return false;
    const Sums inside = gathered_sums(ws_, found.between, s.base, s.c);
    const Sums through = plus(found.above, inside);
    *seen = {bracket.wide, through};
    if (!reaches(cut, through, sums_, need)) return false;
    const double so_far = measured(cut, found.above, sums_);
    const double share = (need - so_far) / (measured(cut, through, sums_) - so_far);
    const Edge edge = search_arrays(cut, sums_, keys, found.between, found.above, share);
    if (edge.key == INFINITY) return false;  // the last token kept lies above the bracket
    // The walk was in the order of the keys only if they part the row where the bracket does.
    const Interval kept = logits_of(keys, edge.key), wide = bracket.wide, above = bracket.above;
    if (!(kept.lo <= kept.hi) || kept.lo < wide.lo || kept.hi > wide.hi) return false;
    if (found.above.n > 0 && (above.lo < kept.lo || above.hi > kept.hi)) return false;
    narrow_to_split(found, bracket, edge, kept, s);
    return true;
  }

  // narrow: after a split and a search between. The weights of gathered tokens that go become 0.
  void narrow_to_split(const Split& found, const Bracket& bracket, const Edge& edge, Interval kept, Scale s) {
    V highest = all(found.highest);
    for (int64_t i = 0; i < found.between; i += kLanes) {  // what lies behind the last token is in no interval
      const V x = load(ws_.x + i);
      const M stays = Interval::has(x, kept.bottom(), kept.hi);
      store(ws_.w + i, zero_unless(stays, load(ws_.w + i)));
      highest = max_of(highest, choose(stays, x, all(-INFINITY)));
    }
    // Tokens near the upper edge are few and heavy: their groups are settled at once.
    lacking_up_to_ = bracket.above.hi;
    heaviest_lacking_ = Weights<kFar>(s.base, s.c).of(all(fminf(bracket.above.lo, s.base)))[0] * 1.0001f;
    for (int64_t g = 0; g < row_.groups(); ++g)
      if (!lacks_edge(g)) ws_.group_mass[g] += edge_mass(g);
    shrink(kept);
    top_ = fminf(top_, largest_lane(highest));
    n_ = int64_t(edge.kept.n), sums_ = edge.kept, sums_are_at_ = masses_at_ = s;
  }

  // narrow: after a search among n gathered tokens, at the scale of their y.
  void narrow_to(const Edge& edge, int64_t n, Keys keys, Scale s) {
    if (!edge.stopped) {
      if (!gathered_) arrays_at_ = {};
      return;
    }
    Interval kept{edge.key, interval_.hi};
    if (!keys.by_logit) {
      V minus_lo = all(-INFINITY), hi = minus_lo;
      for (int64_t i = n; i < n + kLanes; ++i) ws_.x[i] = -INFINITY;
      for (int64_t i = 0; i < n; i += kLanes) {
        const V x = load(ws_.x + i);
        const M stays = both(at_least(Keys::of(keys, x), all(edge.key)), at_least(x, all(kLowest)));
        minus_lo = max_of(minus_lo, choose(stays, -x, all(-INFINITY))),
        hi = max_of(hi, choose(stays, x, all(-INFINITY)));
      }
      kept = {-largest_lane(minus_lo), largest_lane(hi)};
    }
    narrow_gathered(n, kept);
    sums_ = edge.kept, sums_are_at_ = s;
  }

  // narrow: the survivors become those at or above `lo`.
  void narrow(float lo) {
    const Interval kept{lo, interval_.hi};
    if (gathered_) return narrow_gathered(n_, kept);
    if (!(lo > kLowest) || lo <= interval_.lo) return;
    const int64_t n = gather(row_, ws_, kept, few());
    if (n >= 0) return narrow_gathered(n, kept);
    shrink(kept);
    n_ = -1, sums_are_at_ = masses_at_ = {};
  }

  void narrow_gathered(int64_t n, Interval kept) {
    shrink(kept);
    n_ = keep_between(ws_, n, interval_);
    gathered_ = true;
    sums_are_at_ = arrays_at_ = {};
  }

  bool lacks_edge(int64_t g) const { return ws_.group_max[g] <= lacking_up_to_; }
  double edge_mass(int64_t g) const {
    const int64_t start = ws_.run_start[g], end = ws_.run_start[g + 1];
    V mass = all(0.0f);
    for (int64_t i = start; i < end; i += kLanes)
      mass += zero_unless(less(count_up(), all(float(end - i))), load(ws_.w + i));
    return sum_of_lanes(pairs_of(mass));
  }

  int64_t few() const { return row_.limit / 16; }  // so many are worth gathering

  void shrink(Interval kept) {
    interval_ = {fmaxf(kept.lo, interval_.lo), fminf(kept.hi, interval_.hi)};
    top_ = fminf(top_, interval_.hi);
  }

  const Row& row_;
  const Workspace& ws_;
  const float max_, least_;  // of the row, see Extent
  float top_;                // of the survivors
  Interval interval_;
  bool gathered_ = false;  // do the survivors lie in the workspace?
  int64_t n_;              // survivors; -1: not counted yet
  const int64_t alive_;    // tokens of the row above -inf
  Sums sums_, whole_;      // over the survivors, over the row;
  Scale sums_are_at_;      // the scales they are at
  float whole_c_ = 0;
  Scale arrays_at_;                                         // of ws.y and ws.w of gathered survivors
  Scale masses_at_;                                         // of ws.group_mass of survivors that are not gathered
  float lacking_up_to_ = -INFINITY, heaviest_lacking_ = 0;  // see settle_masses
};

}  // namespace FD_TARGET
}  // namespace fastdecode
