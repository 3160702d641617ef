// What: the survivors of one row, and the verbs that run a plan on them: measure, search, narrow.
// Contract: finite logits and -inf (a row with a NaN or +inf never gets here); ties stay or go together, because all that a
//   cut can do is narrow the interval [lo, hi] of logits.
// Idea: 1. measure: sums over the survivors, kept from one cut to the next while they are valid; 2. search: a floor is a
//   closed form; a prefix looks first at the tokens above a bound that a few groups' maxima reach, and looks
//   further only while the edge is not among them; 3. narrow: from then on the survivors lie gathered in the workspace,
//   and no later cut touches the row again.
// Who does what: one thread. Numbers: sums in double; edges are logits of the row, compared exactly.
// Randomness: none. Cost: no rule or prefix: two passes; a floor without sums: one. Limits: none.

#include "search.inl"

namespace fastdecode {
namespace FD_TARGET {

FD_FN float scale_of(double temperature) { return float(1.0 / (temperature * kLn2)); }

// The smallest float >= edge.
FD_FN float round_up(double edge) {
  const float f = float(edge);
  return double(f) < edge ? nextafterf(f, INFINITY) : f;
}

class Survivors {
 public:
  Survivors(const Row& row, const Workspace& ws, float max, int64_t alive) : row_(row), ws_(ws), max_(max), top_(max), alive_(alive) {}

  int64_t count() const { return gathered_ ? n_ : alive_; }
  bool gathered() const { return gathered_; }
  float lo() const { return lo_; }
  float hi() const { return hi_; }
  float top() const { return top_; }  // the largest survivor

  void run(const Cut& cut) {
    if (cut.temperature == 0 || count() <= 1) return;  // a greedy row has nothing left to cut
    if (int(cut.kind) == kFloor)
      narrow(floor_edge(cut), hi_);
    else if (int(cut.order) == kByTypicality)
      prefix_by_typicality(cut);
    else
      prefix_by_logit(cut);
  }

  // measure: sums over the survivors, d relative to the row's maximum. For gathered ones, y and w are left in the workspace.
  const Sums& sums_at(float c) {
    if (gathered_) {
      if (arrays_c_ != c) sums_ = gathered_sums(ws_, n_, max_, c);
      sums_c_ = arrays_c_ = c;
    } else {
      sums_ = row_sums_at(c);
      sums_c_ = c;
    }
    return sums_;
  }

  // Sums over the whole row, whatever survives; the groups' masses of the same scale are left in the workspace.
  const Sums& row_sums_at(float c) {
    if (whole_c_ != c) {
      whole_ = row_sums(row_, max_, c, ws_.group_mass);
      whole_.n = double(alive_);
      whole_c_ = c;
    }
    return whole_;
  }

  // The rank-th largest logit of the survivors, or -inf if there are fewer.
  float nth_largest(double rank) {
    if (double(count()) < rank) return -INFINITY;
    Cut cut{};
    cut.kind = kPrefix, cut.measure = kCount, cut.need = float(rank), cut.keep = 1, cut.temperature = 1;
    int64_t n;
    return find_by_logit(cut, Sums{double(count())}, &n).key;
  }

 private:
  float floor_edge(const Cut& cut) {
    const double t = cut.temperature;
    const float c = scale_of(t);
    Whole whole;
    if (wants_sums(cut)) {
      const Sums& sums = valid_sums_at(c);
      whole.ln_mass = log(sums.mass) - (double(top_) - double(max_)) / t;
      whole.entropy = entropy_of(sums);
    }
    if (cut.w_sd != 0 || cut.w_p2 != 0) {
      Spread spread;
      if (gathered_)
        add_spread(ws_.x, n_, max_, c, &spread);
      else
        spread = row_spread(row_, max_, c);
      const double squares = spread.squares - spread.sum * spread.sum / spread.n;
      whole.sd = spread.n > 1 ? sqrt(fmax(squares, 0.0) / (spread.n - 1)) / t : 0.0;
      if (cut.w_p2 != 0) whole.ln_p2 = log(spread.mass2) - 2 * log(valid_sums_at(c).mass);
    }
    float edge = round_up(double(top_) + t * floor_of(cut, whole));
    if (cut.keep > 1) edge = fminf(edge, nth_largest(cut.keep));
    return edge;
  }

  // The sums that a search left over are as good as new ones.
  const Sums& valid_sums_at(float c) { return sums_c_ == c ? sums_ : sums_at(c); }

  void prefix_by_logit(const Cut& cut) {
    const float c = scale_of(cut.temperature);
    Sums whole{double(count())};
    double share = 1;
    if (cut.within < count()) {  // then only the `within` largest exist, a straddling group of ties for its share
      const float boundary = nth_largest(cut.within);
      narrow(boundary, hi_);
      sums_at(c);
      Sums tied;
      for (int64_t i = 0; i < n_; ++i)
        if (ws_.x[i] == boundary) add(&tied, ws_.w[i], ws_.y[i]);
      share = (double(cut.within) - (double(n_) - tied.n)) / tied.n;
      whole = sums_;
      whole.mass -= (1 - share) * tied.mass, whole.moment -= (1 - share) * tied.moment;
      for (int64_t i = 0; i < n_; ++i)
        if (ws_.x[i] == boundary) ws_.w[i] *= float(share);
    } else if (wants_sums(cut)) {
      whole = valid_sums_at(c);
    }
    int64_t n;
    const Edge edge = find_by_logit(cut, whole, &n);
    if (share < 1) arrays_c_ = 0;  // ws.w no longer holds plain exponentials
    if (!edge.stopped) return;
    narrow_gathered(n, edge.key, hi_);
    if (share == 1) sums_ = edge.kept, sums_c_ = c;
  }

  // Is the end of the walk among tokens with these sums? (Of a kStopBefore walk: can it be?)
  static bool reaches(const Cut& cut, const Sums& part, const Sums& whole) {
    const double so_far = measured(cut, part, whole), need = needed(cut, whole);
    return int(cut.stop) == kStopAfter ? so_far >= need && part.n >= cut.keep : so_far > need && part.n > cut.keep;
  }

  // search along descending logits. Leaves the *n tokens it looked at gathered; the state stays as it was.
  Edge find_by_logit(const Cut& cut, const Sums& whole, int64_t* n) {
    const float c = scale_of(cut.temperature);
    if (gathered_) {
      if (arrays_c_ != c) gathered_sums(ws_, n_, max_, c), arrays_c_ = c;
      *n = n_;
    } else {
      const bool by_count = int(cut.measure) == kCount;
      for (int64_t rank = by_count ? int64_t(fminf(cut.need, 1e9f)) : 32;; rank *= 6) {
        const float bound = bound_by_groups(ws_.group_max, row_.groups(), rank);
        *n = gather(row_, ws_, bound, INFINITY);
        const Sums part = gathered_sums(ws_, *n, max_, c);
        if (bound == kLowest || reaches(cut, part, whole)) break;
      }
    }
    memcpy(ws_.key, ws_.x, size_t(*n) * 4);
    memcpy(ws_.key_w, ws_.w, size_t(*n) * 4);
    memcpy(ws_.key_y, ws_.y, size_t(*n) * 4);
    return search(cut, whole, ws_, *n);
  }

  // search outwards from the mean of the logits under p, where -ln p equals the entropy; then narrow from both sides.
  void prefix_by_typicality(const Cut& cut) {
    const float c = scale_of(cut.temperature);
    const Sums whole = valid_sums_at(c);
    const float centre = float(whole.moment / whole.mass / kLn2);
    int64_t n = n_, near = 0;
    if (gathered_) {
      if (arrays_c_ != c) gathered_sums(ws_, n_, max_, c), arrays_c_ = c;
      near = by_distance(n, centre, INFINITY, nullptr);
    } else {
      for (int64_t rank = 32;; rank *= 6) {
        const float bound = bound_by_groups(ws_.group_max, row_.groups(), rank);
        const float radius = bound == kLowest ? INFINITY : centre - (bound - max_) * c;
        if (!(radius > 0)) continue;  // the tokens nearest to the centre are further down
        n = gather(row_, ws_, bound, INFINITY);
        gathered_sums(ws_, n, max_, c);
        Sums part;
        near = by_distance(n, centre, radius, &part);
        if (bound == kLowest || reaches(cut, part, whole)) break;
      }
    }
    const Edge edge = search(cut, whole, ws_, near);
    if (!edge.stopped) return;
    float lo = INFINITY, hi = -INFINITY;
    for (int64_t i = 0; i < n; ++i) {
      if (-fabsf(ws_.y[i] - centre) < edge.key) continue;
      lo = ws_.x[i] < lo ? ws_.x[i] : lo;
      hi = ws_.x[i] > hi ? ws_.x[i] : hi;
    }
    narrow_gathered(n, lo, hi);
    top_ = hi, sums_ = edge.kept, sums_c_ = c;
  }

  // Fills the search arrays with the gathered tokens less than `radius` from the centre; below it the row was not gathered.
  int64_t by_distance(int64_t n, float centre, float radius, Sums* part) {
    int64_t near = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float distance = fabsf(ws_.y[i] - centre);
      ws_.key[near] = -distance, ws_.key_w[near] = ws_.w[i], ws_.key_y[near] = ws_.y[i];
      if (!(distance < radius)) continue;
      if (part) add(part, ws_.w[i], ws_.y[i]);
      ++near;
    }
    return near;
  }

  // narrow: the survivors become those of [lo, hi].
  void narrow(float lo, float hi) {
    if (gathered_)
      narrow_gathered(n_, lo, hi);
    else if (lo > kLowest || hi < max_)
      narrow_gathered(gather(row_, ws_, lo, hi), lo, hi);
  }

  void narrow_gathered(int64_t n, float lo, float hi) {
    lo_ = lo > lo_ ? lo : lo_, hi_ = hi < hi_ ? hi : hi_;
    n_ = keep_between(ws_, n, lo_, hi_);
    gathered_ = true;
    sums_c_ = arrays_c_ = 0;
  }

  const Row& row_;
  const Workspace& ws_;
  const float max_;       // of the row
  float top_;             // of the survivors
  const int64_t alive_;   // tokens of the row above -inf
  float lo_ = -INFINITY, hi_ = INFINITY;
  bool gathered_ = false;
  int64_t n_ = 0;         // gathered survivors
  Sums sums_, whole_;     // over the survivors, over the row;
  float sums_c_ = 0, whole_c_ = 0;  // the scales they are at, 0: not valid
  float arrays_c_ = 0;    // the scale of ws.y and ws.w of the gathered survivors
};

}  // namespace FD_TARGET
}  // namespace fastdecode
