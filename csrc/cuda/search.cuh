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
FD_CALLED int guess(Row& row, const Cut& cut, const Sums& whole, double need, const Keys& keys, float c,
                    const Binning& bin, uint32_t low, const Sums& above) {
  row.listed = 0, row.list_lo = INFINITY, row.list_hi = -INFINITY;  // the bins lie there
  sync_block();
  uint32_t* const mine = row.memory.bins.mine;
  uint32_t* const all = row.memory.bins.all;
  for (int b = thread(); b < 2 * kBins; b += threads()) mine[b] = 0;
  sync_block();
  const bool by_count = int(cut.measure) == kCount, moments = !by_count && int(cut.measure) != kMass;
  const float unit = float(2147483648.0 / whole.mass);
  const float moment_unit = whole.moment < 0 ? float(2147483648.0 * kLn2 / -whole.moment) : 0.0f;
  const float bottom = row.bottom();
  row.each_group(keys.by_logit ? fmaxf(bottom, float_of_key(low)) : bottom, [&](int, const float (&x)[kEach]) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const float y = row.scaled(x[j], c);
      const uint32_t key = key_of(keys.of(x[j], y));
      if (!(x[j] >= bottom && x[j] <= row.hi) || key < low || key >= bin.high) continue;
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
  row.team.meet();
  for (int b = thread(); b < (moments ? 2 : 1) * kBins; b += threads()) {
    uint32_t sum = 0;
    for (int r = 0; r < ranks(); ++r) sum += of_rank(mine + b, r)[0];
    all[b] = sum;
  }
  sync_block();

  const int per_thread = (kBins + threads() - 1) / threads(), first = thread() * per_thread;
  int64_t v[2] = {0, 0};
  for (int b = first; b < first + per_thread && b < kBins; ++b) v[0] += all[b], v[1] += moments ? all[kBins + b] : 0;
  row.team.below_in_block(v);
  int64_t stop[1] = {-kBins};
  for (int b = first; b < first + per_thread && b < kBins && stop[0] == -kBins; ++b) {
    v[0] += all[b], v[1] += moments ? all[kBins + b] : 0;
    Sums part = above;
    part.n = by_count ? above.n + double(v[0]) : double(INFINITY);
    if (!by_count) part.mass += double(v[0]) / double(unit);
    if (moments && moment_unit > 0) part.moment -= double(v[1]) / double(moment_unit) * kLn2;
    if (reaches(cut, part, whole, need)) stop[0] = -b;
  }
  row.team.over_block(Most(), stop);
  return stop[0] == -kBins ? kBins - 1 : int(-stop[0]);
}

// 2. The sums over keys from `from` on; and the lowest and highest key in [from, below).
struct Part {
  Sums sums;
  uint32_t lowest, highest;
};

FD_CALLED Part pass_of_keys(Row& row, const Keys& keys, float c, uint32_t from, uint32_t below) {
  int n = 0;
  uint32_t highest = 0, not_lowest = 0;
  const float bottom = row.bottom(), bound = keys.by_logit ? fmaxf(bottom, float_of_key(from)) : bottom;
  row.team.await_table();
  for (int g = row.slice.first + warp(); g < row.slice.end; g += warps()) {
    float mass = 0, moment = 0;
    if (row.memory.table.max[g] >= bound) {
      float x[kEach], w[kEach], m[kEach];
      row.slice.load(g, x);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const float y = fminf(row.scaled(x[j], c), 0.0f);
        const uint32_t key = key_of(keys.of(x[j], y));
        const bool in = x[j] >= bottom && x[j] <= row.hi && key >= from;
        w[j] = in ? exp2_of(y) : 0.0f;
        m[j] = w[j] * y;
        n += in;
        if (in && key < below)
          highest = key > highest ? key : highest, not_lowest = ~key > not_lowest ? ~key : not_lowest;
      }
      mass = sum_of_8(w), moment = sum_of_8(m);
    }
    tell(row, g, double(mass), double(moment));
  }
  row.masses_c = 0;
  int64_t v[3] = {n, highest, not_lowest};
  row.team.over_cluster(SumThenMost<1>(), v);
  const Table& table = row.memory.table;
  double mass, moment;
  sum_of_groups(row, [&](int g, double* a, double* b) { *a = table.mass[g], *b = table.moment[g]; }, &mass, &moment);
  return {sums_of(double(v[0]), mass, moment * kLn2), ~uint32_t(v[2]), uint32_t(v[1])};
}

FD_CALLED uint32_t search_slices(Row& row, const Cut& cut, const Sums& whole, double need, const Keys& keys, float c) {
  if (!reaches(cut, whole, whole, need)) return 0;
  // Where the keys are: the first histogram leaves out, as one last bin, what is far below most groups' maxima.
  const float low_x = fmaxf(row.lowest, row.bottom());
  uint32_t low, high;
  if (keys.by_logit) {
    low = key_of(low_x), high = key_of(row.top) + 1;
  } else {
    low = key_of(-fmaxf(fabsf(keys.centre), fabsf(row.scaled(low_x, c) - keys.centre))), high = key_of(0.0f) + 1;
  }
  Sums above;
  bool found = true;  // did the last round find the edge where it was thought to be?
  for (int round = 0; high - low > 1; ++round) {
    uint32_t lower, upper;
    if (found) {
      const uint32_t reach = round == 0 && keys.by_logit ? key_of(fmaxf(low_x, row.top - 64.0f / c)) : low;
      const bool far = int(cut.measure) != kCount && reach > low && reach < high - 1;
      const Binning bin = bins_of(round == 0, far ? reach : low, high);
      const int b = guess(row, cut, whole, need, keys, c, bin, far ? reach : low, above);
      lower = b == kBins - 1 ? low : bin.lowest_of(b, low);
      upper = b == 0 ? high : bin.lowest_of(b - 1, low);
    } else {
      lower = low + (high - low) / 3, upper = high - (high - low) / 3;
    }
    if (lower <= low && upper >= high) lower = low + (high - low) / 2;  // a round must part off something
    const Part over = upper < high ? pass_of_keys(row, keys, c, upper, high) : Part{above, low, high - 1};
    if (upper < high && reaches(cut, over.sums, whole, need)) {
      low = upper, found = false;
      continue;
    }
    const float bottom = row.bottom(), hi = row.hi;
    const int64_t between = list_tokens(row, keys.by_logit ? fmaxf(bottom, float_of_key(lower)) : bottom, [&](float x) {
      const uint32_t key = key_of(keys.of(x, fminf(row.scaled(x, c), 0.0f)));
      return x >= bottom && x <= hi && key >= lower && key < upper;
    });
    if (between <= kList) {
      const Range range = weigh(row, keys, c, lower);
      const Sums through = plus(over.sums, sum_of_list(row, lower, upper));
      // What holds the lowest survivor holds the end of the walk, whatever rounding says.
      if (lower <= low || reaches(cut, through, whole, need))
        return between ? search_list(row, cut, whole, need, over.sums, range) : upper;
      high = lower, above = through, found = false;
      continue;
    }
    const Part through = pass_of_keys(row, keys, c, lower, upper);
    found = lower <= low || reaches(cut, through.sums, whole, need);
    if (found)
      low = through.lowest, high = through.highest + 1, above = over.sums;
    else
      high = lower, above = through.sums;
  }
  return kept_from(cut, low, above.n);
}

// 1. A bound that at least `rank` and few more groups' maxima reach: so many tokens at least lie at or above it. -inf where
// there are not so many groups.
FD_CALLED float bound_by_groups(Row& row, double rank) {
  constexpr float kMasked = -1e30f;  // groups that are masked with a number would make the bisection one of that number
  const float* const maxima = row.memory.table.max;
  int64_t v[1] = {-1};
  for (int g = thread(); g < row.groups; g += threads())
    if (maxima[g] > kMasked && v[0] < int64_t(~key_of(maxima[g]))) v[0] = int64_t(~key_of(maxima[g]));
  row.team.over_block(Most(), v);
  if (v[0] < 0) return -INFINITY;
  float low = float_of_key(~uint32_t(v[0])), high = row.max;
  for (int round = 0; round < 13; ++round) {
    const float middle = round == 0 ? low : low + (high - low) / 2;
    int reached = 0;
    for (int g = thread(); g - thread() < row.groups; g += threads())
      reached += count_in_block(g < row.groups && maxima[g < row.groups ? g : 0] >= middle);
    if (round == 0 && double(reached) < rank) return -INFINITY;
    if (double(reached) >= rank)
      low = middle;  // always reached by at least `rank` groups
    else
      high = middle;
    if (double(reached) >= rank && double(reached) <= rank * 1.25) break;
  }
  return low;
}

// Where the kept keys of a prefix begin; 0: everything is kept.
FD_CALLED uint32_t edge_of(Row& row, const Cut& cut, const Sums& whole, const Keys& keys, float c) {
  const double need = needed(cut, whole);
  const bool by_count = int(cut.measure) == kCount;
  double rank = by_count ? double(cut.need) : 32;
  for (int attempt = 0; attempt < 2; ++attempt, rank *= 5) {
    bool listed = row.list_covers();
    if (!listed && (row.n > kList || row.n < 0) && row.slice.limit > kList) {
      if (rank > kList) break;
      const float bound = bound_by_groups(row, rank);
      if (bound == -INFINITY) break;
      listed = gather(row, bound) <= kList;
    } else if (!listed) {
      listed = gather(row, -INFINITY) <= kList;
    }
    if (!listed) break;
    const bool everything = row.list_covers();
    // Of a typicality order, all tokens nearer to the centre than the bound have been seen.
    const float nearest = -fabsf(keys.centre - row.scaled(row.list_lo, c));
    uint32_t from = 1;
    if (!everything) {
      if (!keys.by_logit && !(row.scaled(row.list_lo, c) < keys.centre)) continue;
      from = keys.by_logit ? key_of(row.list_lo) : key_of(nearest) + 1;
    }
    const Range range = weigh(row, keys, c, from);
    if (reaches(cut, sum_of_list(row, from, 0xffffffffu), whole, need))
      return search_list(row, cut, whole, need, Sums(), range);
    if (everything) return 0;
    if (by_count) break;
  }
  Sums all = whole;
  if (by_count && row.n < 0) all.n = pass_of_sums(row, c).n;
  return search_slices(row, cut, all, need, keys, c);
}

}  // namespace cuda
}  // namespace fastdecode
