// What: a plan's cuts, run on a row: measure, search, narrow.
// Contract: cut.h; a cut can only narrow the interval of logits [lo, hi], so ties stay or go together.
// Idea: sums are kept from one cut to the next while they are valid; few survivors are summed on the list, without the cluster.
//   A floor is a closed form; a prefix is searched; a prefix by typicality, too, ends at a lowest and a highest logit.
// Who does what: everything by all threads of the cluster together, every branch is the same for a whole row.
// Numbers: edges are logits of the row, compared exactly. Randomness: none. Cost: what the cuts of the plan ask for. Limits: none.
#pragma once

#include "search.cuh"

namespace fastdecode {
namespace cuda {

// The largest survivor, where `top` is only a bound of it.
FD_CALLED float largest(Team team) {
  if (row().top_is_one) return row().top;
  const float bottom = row().bottom(), hi = row().hi;
  int64_t v[1] = {0};
  each_group(bottom, [&](int, const float (&x)[kEach]) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int64_t key = x[j] >= bottom && x[j] <= hi ? int64_t(key_of(x[j])) : 0;
      v[0] = v[0] > key ? v[0] : key;
    }
  });
  team.over_cluster(Max(), v);
  const float top = float_of_key(uint32_t(v[0]));
  change([&](Row& row) { row.top = row.hi = top, row.top_is_one = true, row.sums_c = row.masses_c = 0; });
  return top;
}

// Before sums at scale c are taken relative to `top`.
FD_DEVICE void fix_top(Team team, float c) {
  if (!row().top_is_one && c > row().top_c) largest(team);
}

// measure: sums over the survivors.
FD_CALLED Sums sums_at(Team team, float c) {
  if (row().sums_c == c) return row().sums;
  fix_top(team, c);
  const bool listed = row().list_covers();
  Sums sums;
  if (listed) {
    weigh(team, {true, 0}, c, 1);
    sums = sum_of_list(1, 0xffffffffu, c);
  } else {
    sums = pass_of_sums(team, c);
  }
  change([&](Row& row) {
    row.sums = sums, row.n = int64_t(sums.n), row.sums_c = c;
    if (!listed) row.masses_c = c;
    if (row.open()) row.whole = sums, row.whole_c = c;
  });
  return sums;
}

// Sums over the whole row, whatever survives.
FD_CALLED Sums whole_at(Team team, float c) {
  if (row().whole_c == c) return row().whole;
  const float lo = row().lo, hi = row().hi, top = row().top;
  change([](Row& row) { row.lo = -INFINITY, row.hi = INFINITY, row.top = row.max; });
  const Sums whole = pass_of_sums(team, c);
  change(
      [&](Row& row) { row.whole = whole, row.whole_c = c, row.masses_c = 0, row.lo = lo, row.hi = hi, row.top = top; });
  return whole;
}

// The survivors become those in [lo, hi] that there are.
FD_DEVICE void narrow(float lo, float hi) {
  change([&](Row& row) { row.narrow(lo, hi); });
}

FD_DEVICE double count(Team team) {
  if (row().n < 0) sums_at(team, scale_of(1));
  return double(row().n);
}

FD_DEVICE Cut first_tokens(double rank) {
  Cut cut{};
  cut.kind = kPrefix, cut.measure = kCount, cut.need = float(rank), cut.keep = 1, cut.within = INFINITY,
  cut.temperature = 1;
  return cut;
}

// The rank-th largest logit of the survivors, or -inf if there are fewer.
FD_CALLED float nth_largest(Team team, double rank) {
  const double n = count(team);
  if (n < rank) return -INFINITY;
  Sums whole;
  whole.n = n;
  const uint32_t from = edge_of(team, first_tokens(rank), whole, {true, 0}, scale_of(1));
  return from ? float_of_key(from) : -INFINITY;
}

// Where a floor cuts: the smallest logit that it keeps.
FD_CALLED float floor_edge(Team team) {
  const Cut& cut = row().cut;
  const double t = cut.temperature;
  const float c = scale_of(t);
  largest(team);
  Whole whole;
  double mass = 0;
  if (wants_sums(cut)) {
    const Sums sums = sums_at(team, c);
    mass = sums.mass;
    whole.ln_mass = log(mass);
    whole.entropy = entropy_of(sums);
  }
  if (cut.w_sd != 0) {
    const Spread spread = pass_of_spread(team, c, false);
    const double squares = spread.squares - spread.sum * spread.sum / spread.n;
    whole.sd = spread.n > 1 ? sqrt(fmax(squares, 0.0) / (spread.n - 1)) / t : 0.0;
  }
  if (cut.w_p2 != 0) whole.ln_p2 = log(pass_of_spread(team, c, true).squares) - 2 * log(mass);
  const double edge = double(row().top) + t * floor_of(cut, whole);
  float lo = float(edge);
  if (double(lo) < edge) lo = nextafterf(lo, INFINITY);
  return cut.keep > 1 ? fminf(lo, nth_largest(team, cut.keep)) : lo;
}

// The smallest key of [low, high] that `yes` says yes to, as it does to all larger ones. By a warp; `yes` of high is yes.
template <class Yes>
FD_DEVICE uint32_t first_key(uint32_t low, uint32_t high, Yes yes) {
  while (low < high) {
    const uint32_t step = (high - low) / kLanes;
    const uint32_t key = step ? low + step * uint32_t(lane()) : low + uint32_t(lane()) < high ? low + uint32_t(lane()) : high;
    const uint32_t said = ballot(yes(key));
    const int first = said ? __builtin_ffs(int(said)) - 1 : kLanes;
    const uint32_t none = low;  // of lane 0
    if (!step) return first < kLanes ? shuffle(key, first) : high;
    if (first < kLanes) high = none + step * uint32_t(first);
    if (first > 0) low = none + step * uint32_t(first - 1) + 1;
  }
  return low;
}

// narrow: to the logits with keys from `from` on: y rises with the logit, so they are an interval. Its upper end need not be a logit
// of the row.
FD_CALLED void narrow_to_keys(Keys keys, float c, uint32_t from) {
  const float top = row().top;
  auto y_of = [&](uint32_t key) { return fminf(scaled(float_of_key(key), top, c), 0.0f); };
  auto near = [&](float y) { return key_of(keys.of(0, y)) >= from; };
  const uint32_t least = key_of(row().bottom()), most = key_of(top);
  const uint32_t low = first_key(least, most, [&](uint32_t key) { return y_of(key) >= keys.centre || near(y_of(key)); });
  const uint32_t over = first_key(low, most + 1, [&](uint32_t key) {
    return key > most || (y_of(key) > keys.centre && !near(y_of(key)));
  });
  change([&](Row& row) {
    row.narrow(float_of_key(low), float_of_key(over - 1));
    row.top_is_one = row.top_is_one && over > most, row.top_c = c;
  });
}

// Only the `within` largest exist for this cut; of a straddling group of ties, its share.
FD_CALLED void prefix_within(Team team) {
  const Cut& cut = row().cut;
  const float c = scale_of(cut.temperature);
  const float boundary = nth_largest(team, cut.within);
  narrow(boundary, INFINITY);
  const Sums all = sums_at(team, c);
  // First without the group of ties at the boundary: nothing else counts for a share.
  const float hi = row().hi;
  Sums over;  // all but those
  if (boundary < row().top) {
    narrow(float_of_key(key_of(boundary) + 1), INFINITY);
    over = sums_at(team, c);
  }
  const double share = (double(cut.within) - over.n) / (all.n - over.n);
  Sums whole = all;
  whole.mass -= (1 - share) * (whole.mass - over.mass), whole.moment -= (1 - share) * (whole.moment - over.moment);
  const double need = needed(cut, whole);
  uint32_t from = key_of(boundary);
  if (over.n > 0 && reaches(cut, over, whole, need)) {
    from = edge_of(team, cut, whole, {true, 0}, c);
    if (from == 0) from = key_of(boundary) + 1;
  } else if (over.n > 0) {
    Sums through = whole;
    through.n = all.n;
    if (int(cut.stop) == kStopBefore && stops(cut, over, through, whole, need)) from = key_of(boundary) + 1;
  }
  change([&](Row& row) { row.lo = boundary, row.hi = hi; });
  narrow(float_of_key(from), INFINITY);
}

FD_CALLED void prefix(Team team) {
  const Cut& cut = row().cut;
  const bool by_count = int(cut.measure) == kCount;
  const bool all_exist = cut.within == INFINITY || !(double(cut.within) < count(team));
  if (all_exist && (cut.need == INFINITY || (by_count && row().n >= 0 && double(cut.need) >= double(row().n)))) return;
  if (!all_exist) return prefix_within(team);
  const float c = scale_of(cut.temperature);
  Sums whole;
  whole.n = double(row().n);
  if (wants_sums(cut)) whole = sums_at(team, c);
  Keys keys{int(cut.order) == kByLogit, 0};
  if (!keys.by_logit) keys.centre = float(whole.moment / whole.mass / kLn2);
  const uint32_t from = edge_of(team, cut, whole, keys, c);
  if (from == 0) return;
  if (keys.by_logit)
    narrow(float_of_key(from), INFINITY);
  else
    narrow_to_keys(keys, c, from);
}

// The scale of the first sums that a plan asks for: they come out of the read. 0: none.
FD_DEVICE float first_scale(const Cut* cuts, bool samples) {
  const Cut& first = cuts[0];
  const bool is_draw = int(first.kind) == kDraw;
  const bool wanted = is_draw ? samples : wants_sums(first) && (int(first.kind) == kFloor || first.need != INFINITY);
  return wanted && first.temperature != 0 ? scale_of(first.temperature) : 0;
}

}  // namespace cuda
}  // namespace fastdecode
