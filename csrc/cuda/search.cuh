// What: where a prefix ends: the smallest key that its walk by descending key keeps.
// Contract: row.cuh. Equal keys stay or go together. 0: the walk meets no edge, everything is kept.
// Idea: 1. near the top: list the tokens that reach a bound which a few groups' maxima reach; if the edge is among them, it is found there.
//   2. Otherwise, many tokens: narrow a bracket of keys, [low, high), in which the walk stops, until it fits on the list or holds
//   one key. A round takes a histogram, which says about where the edge is, and a split: the exact sums above it
//   and the tokens in it. What the histogram says may be wrong; then the bracket is cut in three, and the answer is the same.
// Who does what: passes by the cluster, a warp a group; decisions by every block, with the same result.
// Numbers: the histogram in 32 bits, a share of 2^31; the sums that decide in double. Randomness: none.
// Cost: 1 looks at few groups; a round of 2 is two passes over shared memory, and one round is the rule. Limits: none.
#pragma once

#include "list.cuh"

namespace fastdecode {
namespace cuda {

// 2. A histogram's bins: of equal width in the keys' floats, or in the keys themselves.
struct Binning {
  bool linear;
  float first, per_unit;  // the float of the highest key; bins per unit
  uint32_t high;
  int shift;
  FD_MEMBER int of(uint32_t key) const {
    if (!linear) return int((high - 1 - key) >> shift);
    return int(fminf(fmaxf((first - float_of_key(key)) * per_unit, 0.0f), float(kBins - 1)));
  }
  // The lowest key of [low, high) in bin b or before it.
  FD_MEMBER uint32_t lowest_of(int b, uint32_t low) const {
    uint32_t no = low - 1, yes = high - 1;  // of() never rises with the key
    while (yes - no > 1) {
      const uint32_t middle = no + (yes - no) / 2;
      if (of(middle) <= b)
        yes = middle;
      else
        no = middle;
    }
    return yes;
  }
};

FD_DEVICE Binning bins_of(bool linear, uint32_t low, uint32_t high) {
  Binning b{linear, float_of_key(high - 1), 0, high, 0};
  const float width = b.first - float_of_key(low);
  b.per_unit = float(kBins - 1) / width;
  if (!(width > 0) || !(b.per_unit < INFINITY) || !(b.per_unit > 0)) b.linear = false;
  while ((high - 1 - low) >> b.shift >= uint32_t(kBins)) ++b.shift;
  return b;
}

// The bin of the bracket in which the walk seems to stop.
FD_CALLED int guess(Team& team, Binning bin, uint32_t low) {
  change([](Row& row) { row.forget_list(); });  // the bins lie there
  uint32_t* const mine = memory().bins.mine;
  uint32_t* const all = memory().bins.all;
  for (int b = thread(); b < 2 * kBins; b += threads()) mine[b] = 0;
  sync_block();
  const Walk& walk = row().walk;
  const bool by_count = walk.by_count(), moments = measures_moment(walk.cut);
  const float unit = float(2147483648.0 / walk.whole.mass);
  const float moment_unit = walk.whole.moment < 0 ? float(2147483648.0 * kLn2 / -walk.whole.moment) : 0.0f;
  const Keys keys = walk.keys;
  const float c = walk.c;
  const float bottom = row().bottom(), hi = row().hi, top = row().top;
  each_group(keys.by_logit ? fmaxf(bottom, float_of_key(low)) : bottom, [&](int, const float (&x)[kEach]) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const float y = scaled(x[j], top, c);
      const uint32_t key = key_of(keys.of(x[j], y));
      if (!(x[j] >= bottom && x[j] <= hi) || key < low || key >= bin.high) continue;
      const int b = bin.of(key);
      const float w = by_count ? 0.0f : exp2_of(y);
      const uint32_t share = by_count ? 1u : uint32_t(w * unit + 0.5f);
      if (share) add_to(mine + b, share);
      if (moments) {
        const uint32_t moment = uint32_t(-w * y * moment_unit + 0.5f);
        if (moment) add_to(mine + kBins + b, moment);
      }
    }
  });
  team.meet();
  for (int b = thread(); b < (moments ? 2 : 1) * kBins; b += threads()) {
    uint32_t sum = 0;
    for (int r = 0; r < ranks(); ++r) sum += of_rank(mine + b, r)[0];
    all[b] = sum;
  }
  sync_block();

  const int per_thread = (kBins + threads() - 1) / threads(), first = thread() * per_thread;
  int64_t v[2] = {0, 0};
  for (int b = first; b < first + per_thread && b < kBins; ++b) v[0] += all[b], v[1] += moments ? all[kBins + b] : 0;
  team.below_in_block(v);
  int64_t stop[1] = {-kBins};
  for (int b = first; b < first + per_thread && b < kBins && stop[0] == -kBins; ++b) {
    v[0] += all[b], v[1] += moments ? all[kBins + b] : 0;
    Sums part = walk.above;
    part.n = by_count ? part.n + double(v[0]) : double(INFINITY);
    if (!by_count) part.mass += double(v[0]) / double(unit);
    if (moments && moment_unit > 0) part.moment -= double(v[1]) / double(moment_unit) * kLn2;
    if (walk.reached(part)) stop[0] = -b;
  }
  team.over_block(Most(), stop);
  return stop[0] == -kBins ? kBins - 1 : int(-stop[0]);
}

// 2. The sums over keys from `from` on; and the lowest and highest key in [from, below).
struct Part {
  Sums sums;
  uint32_t lowest, highest;
};

FD_CALLED Part pass_of_keys(Team& team, uint32_t from, uint32_t below) {
  const Slice slice = row().slice;
  const Keys keys = row().walk.keys;
  const float c = row().walk.c;
  const Table table = memory().table;
  int n = 0;
  uint32_t highest = 0, not_lowest = 0;
  const float bottom = row().bottom(), hi = row().hi, top = row().top;
  const float bound = keys.by_logit ? fmaxf(bottom, float_of_key(from)) : bottom;
  team.await_table();
  for (int g = slice.first + warp(); g < slice.end; g += warps()) {
    float mass = 0, moment = 0;
    if (table.max[g] >= bound) {
      float x[kEach], w[kEach], m[kEach];
      slice.load(g, x);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const float y = fminf(scaled(x[j], top, c), 0.0f);
        const uint32_t key = key_of(keys.of(x[j], y));
        const bool in = x[j] >= bottom && x[j] <= hi && key >= from;
        w[j] = in ? exp2_of(y) : 0.0f;
        m[j] = w[j] * y;
        n += in;
        if (in && key < below)
          highest = key > highest ? key : highest, not_lowest = ~key > not_lowest ? ~key : not_lowest;
      }
      mass = sum_of_8(w), moment = sum_of_8(m);
    }
    tell(table, g, double(mass), double(moment));
  }
  int64_t v[3] = {n, highest, not_lowest};
  team.over_cluster(SumThenMost<1>(), v);
  double mass, moment;
  sum_of_groups(team, [&](int g, double* a, double* b) { *a = table.mass[g], *b = table.moment[g]; }, &mass, &moment);
  change([](Row& row) { row.masses_c = 0; });
  return {sums_of(double(v[0]), mass, moment * kLn2), ~uint32_t(v[2]), uint32_t(v[1])};
}

// 2. Lists the survivors with keys in [lower, upper). No interval of logits is known to be on the list then.
FD_CALLED int64_t list_keys(Team& team, uint32_t lower, uint32_t upper) {
  const Keys keys = row().walk.keys;
  const float c = row().walk.c;
  const float bottom = row().bottom(), hi = row().hi, top = row().top;
  const float bound = keys.by_logit ? fmaxf(bottom, float_of_key(lower)) : bottom;
  return list_tokens(team, bound, INFINITY, -INFINITY, [&](float x) {
    const uint32_t key = key_of(keys.of(x, fminf(scaled(x, top, c), 0.0f)));
    return x >= bottom && x <= hi && key >= lower && key < upper;
  });
}

// 2. Where the keys are: [low, high).
FD_DEVICE Range range_of_keys() {
  const Keys keys = row().walk.keys;
  const float low = fmaxf(row().lowest, row().bottom());
  if (keys.by_logit) return {key_of(low), key_of(row().top) + 1};
  const float far = fabsf(scaled(low, row().top, row().walk.c) - keys.centre);
  return {key_of(-fmaxf(fabsf(keys.centre), far)), key_of(0.0f) + 1};
}

// 2. Where the walk seems to stop, among the keys of `range`. The first histogram leaves out, as one last bin, what is far below
// most groups' maxima.
FD_CALLED Range guess_range(Team& team, bool first, Range range) {
  const Walk& walk = row().walk;
  uint32_t from = range.low;
  if (first && walk.keys.by_logit && !walk.by_count()) {
    const uint32_t near = key_of(fmaxf(fmaxf(row().lowest, row().bottom()), row().top - 64.0f / walk.c));
    if (near > range.low && near < range.high - 1) from = near;
  }
  const Binning bin = bins_of(first, from, range.high);
  const int b = guess(team, bin, from);
  return {b == kBins - 1 ? range.low : bin.lowest_of(b, range.low),
          b == 0 ? range.high : bin.lowest_of(b - 1, range.low)};
}

// 2. Does the walk stop at a key of [from, below)? If not, the sums from there on are those of what is kept. What holds the lowest
// survivor (`last`) holds the end of the walk, whatever rounding says.
FD_CALLED bool stops_in(Team& team, uint32_t from, uint32_t below, bool last, Range* keys) {
  const Part part = pass_of_keys(team, from, below);
  *keys = {part.lowest, part.highest + 1};
  if (last || row().walk.reached(part.sums)) return true;
  change([&](Row& row) { row.walk.above = part.sums; });
  return false;
}

FD_CALLED uint32_t search_slices(Team& team) {
  if (!row().walk.reached(row().walk.whole)) return 0;
  Range range = range_of_keys(), among;
  bool first = true, found = true;  // did the last round find the edge where it was thought to be?
  while (range.high - range.low > 1) {
    const uint32_t third = (range.high - range.low) / 3;
    Range part{range.low + third, range.high - third};
    if (found) part = guess_range(team, first, range);
    first = false;
    if (part.low <= range.low && part.high >= range.high)
      part.low = range.low + (range.high - range.low) / 2;  // a round must part off something
    if (part.high < range.high && stops_in(team, part.high, range.high, false, &among)) {
      range.low = part.high, found = false;
      continue;
    }
    const bool last = part.low <= range.low;
    const int64_t between = list_keys(team, part.low, part.high);
    if (between <= kList) {
      const Range listed = weigh(team, row().walk.keys, row().walk.c, part.low);
      const Sums through = plus(row().walk.above, sum_of_list(part.low, part.high));
      if (last || row().walk.reached(through)) return between ? search_list(team, listed) : part.high;
      change([&](Row& row) { row.walk.above = through; });
      range.high = part.low, found = false;
      continue;
    }
    found = stops_in(team, part.low, part.high, last, &among);
    if (found)
      range = among;
    else
      range.high = part.low;
  }
  return kept_from(range.low, row().walk.above.n);
}

// 1. A bound that at least `rank` and few more groups' maxima reach: so many tokens at least lie at or above it. -inf where
// there are not so many groups.
FD_CALLED float bound_by_groups(Team& team, double rank) {
  constexpr float kMasked = -1e30f;  // groups that are masked with a number would make the bisection one of that number
  const float* const maxima = memory().table.max;
  const int groups = row().slice.groups;
  int64_t v[1] = {-1};
  for (int g = thread(); g < groups; g += threads())
    if (maxima[g] > kMasked && v[0] < int64_t(~key_of(maxima[g]))) v[0] = int64_t(~key_of(maxima[g]));
  team.over_block(Most(), v);
  if (v[0] < 0) return -INFINITY;
  float low = float_of_key(~uint32_t(v[0])), high = row().max;
  for (int round = 0; round < 13; ++round) {
    const float middle = round == 0 ? low : low + (high - low) / 2;
    int reached = 0;
    for (int g = thread(); g - thread() < groups; g += threads())
      reached += count_in_block(g < groups && maxima[g < groups ? g : 0] >= middle);
    if (round == 0 && double(reached) < rank) return -INFINITY;
    if (double(reached) >= rank)
      low = middle;  // always reached by at least `rank` groups
    else
      high = middle;
    if (double(reached) >= rank && double(reached) <= rank * 1.25) break;
  }
  return low;
}

// 1. Where the kept keys of a prefix begin if that can be told from its largest tokens.
struct Found {
  bool is;
  uint32_t from;
};

FD_CALLED Found search_top(Team& team) {
  const Walk& walk = row().walk;
  double rank = walk.by_count() ? double(walk.cut.need) : 32;
  for (int attempt = 0; attempt < 2; ++attempt, rank *= 5) {
    if (!row().list_covers()) {
      float bound = -INFINITY;
      if ((row().n > kList || row().n < 0) && row().slice.limit > kList) {
        if (rank > kList) break;
        bound = bound_by_groups(team, rank);
        if (bound == -INFINITY) break;
      }
      if (gather(team, bound) > kList) break;
    }
    const bool everything = row().list_covers();
    // Of a typicality order, all tokens nearer to the centre than the bound have been seen.
    uint32_t from = 1;
    if (!everything) {
      const float y = scaled(row().list_lo, row().top, walk.c);
      if (!walk.keys.by_logit && !(y < walk.keys.centre)) continue;
      from = walk.keys.by_logit ? key_of(row().list_lo) : key_of(-fabsf(walk.keys.centre - y)) + 1;
    }
    const Range range = weigh(team, walk.keys, walk.c, from);
    if (walk.reached(sum_of_list(from, 0xffffffffu))) return {true, search_list(team, range)};
    if (everything) return {true, 0};
    if (walk.by_count()) break;
  }
  return {false, 0};
}

// Where the kept keys of a prefix begin; 0: everything is kept.
FD_CALLED uint32_t edge_of(Team& team, const Cut& cut, const Sums& whole, Keys keys, float c) {
  change([&](Row& row) { row.walk = {cut, whole, Sums(), needed(cut, whole), keys, c}; });
  const Found found = search_top(team);
  if (found.is) return found.from;
  if (row().walk.by_count() && row().n < 0) {
    const double n = pass_of_sums(team, row().walk.c).n;
    change([&](Row& row) { row.walk.whole.n = n; });
  }
  return search_slices(team);
}

}  // namespace cuda
}  // namespace fastdecode
