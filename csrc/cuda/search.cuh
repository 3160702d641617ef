// What: where a prefix ends: the smallest key that its walk by descending key keeps.
// Contract: row.cuh. Equal keys stay or go together. 0: the walk meets no edge, everything is kept.
// Idea: 1. near the top: list the tokens that reach a bound which a few groups' maxima reach; if the edge is among them, it is found there.
//   2. Otherwise, many tokens: narrow a bracket of keys, [low, high), in which the walk stops, until it fits on the list or holds
//   one key. A step takes a histogram, which says about where the edge is, and a split: one look at the groups that adds up what lies
//   above that place, and lists what lies at it. What the histogram says may be wrong; then the bracket is cut in three, and the
//   answer is the same.
// Who does what: passes by the cluster, a warp a batch; decisions by every block, with the same result.
// Numbers: the histogram in 32 bits, a share of 2^31; the sums that decide in double. Randomness: none.
// Cost: 1 looks at few groups, in one round; a step of 2 looks twice at all of them, in two rounds, and one step is the rule. Limits: none.
#pragma once

#include "list.cuh"

namespace fastdecode {
namespace cuda {

// 2. A histogram's bins: of equal width in the keys' floats, or in the keys themselves.
struct Binning {
  static constexpr int count = kBins / 2;  // each of two numbers
  bool linear;
  float first, per_unit;  // the float of the highest key; bins per unit
  uint32_t low, high;     // the keys are in [low, high)
  int shift;

  // Whatever the key, a bin.
  FD_MEMBER int of(float key) const { return int(fminf(fmaxf((first - key) * per_unit, 0.0f), float(count - 1))); }
  FD_MEMBER int of(uint32_t key) const {
    const uint32_t bin = (high - 1 - key) >> shift;
    return int(bin < uint32_t(count) ? bin : uint32_t(count - 1));
  }

  // A key near this place, in bins from the highest key down.
  FD_MEMBER uint32_t near(float place) const {
    const uint32_t key = linear ? key_of(first - place / per_unit)
                                : high - 1 - uint32_t(fminf(place * exp2f(float(shift)), float(high - 1 - low)));
    return key < low ? low : key > high ? high : key;
  }
};

FD_DEVICE Binning bins_of(bool linear, uint32_t low, uint32_t high) {
  Binning b{linear, float_of_key(high - 1), 0, low, high, 0};
  const float width = b.first - float_of_key(low);
  b.per_unit = float(b.count - 1) / width;
  if (!(width > 0) || !(b.per_unit < INFINITY) || !(b.per_unit > 0)) b.linear = false;
  while ((high - 1 - low) >> b.shift >= uint32_t(b.count)) ++b.shift;
  return b;
}

// Where the walk seems to stop, in bins from the highest key down; and how far around it to look, so that about half a list is found.
struct Guess {
  float place, around;
};

// This block's part of the histogram: of each token its share of the mass, or 1; and of the moment, or 1, or nothing.
template <bool by_logit, bool linear>
FD_DEVICE void fill_bins(const Binning& bin, uint32_t* mine, float unit, float other_unit, bool counts) {
  const Walk& walk = row().walk;
  const bool by_count = walk.by_count();
  const float c = walk.c, centre = walk.keys.centre;
  const float bottom = row().bottom(), hi = row().hi, top = row().top;
  const float low = float_of_key(bin.low), last = float_of_key(bin.high - 1);
  each_batch<false>(by_logit ? fmaxf(bottom, low) : bottom, [&](int, const float (&x)[kEach], double*, double*) {
    // First all numbers, then all additions: they do not wait for each other, and none is left out, which would be a branch.
    int at[kEach];
    uint32_t share[kEach], other[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const float y = scaled(x[j], top, c), key = Keys{by_logit, centre}.of(x[j], y), w = by_count ? 1.0f : exp2_of(y);
      const bool in = x[j] >= bottom && x[j] <= hi && key >= low && key <= last;
      at[j] = !in ? kBins + lane() : linear ? bin.of(key) : bin.of(key_of(key));
      share[j] = uint32_t(fminf(w * unit + 0.5f, 2147483648.0f));
      other[j] = counts ? 1u : uint32_t(fminf(fmaxf(-w * y * other_unit + 0.5f, 0.0f), 2147483648.0f));
    }
#pragma unroll
    for (int j = 0; j < kEach; ++j) add_to(mine + at[j], share[j]);
    if (other_unit == 0 && !counts) return;
#pragma unroll
    for (int j = 0; j < kEach; ++j) add_to(mine + (at[j] < bin.count ? bin.count : 0) + at[j], other[j]);
  });
}

FD_CALLED Guess guess(Team team, Binning bin) {
  constexpr int kParts = 64;  // of a bin: as fine as it is filled evenly
  uint32_t* const mine = memory().bins;
  for (int b = thread(); b < kBins; b += threads()) mine[b] = 0;
  sync_block();
  const Walk& walk = row().walk;
  const Keys keys = walk.keys;
  const float c = walk.c, top = row().top;
  const bool by_count = walk.by_count(), moments = measures_moment(walk.cut);
  const float unit = by_count ? 1.0f : float(2147483648.0 / walk.whole.mass);
  const float moment_unit = moments && walk.whole.moment < 0 ? float(2147483648.0 * kLn2 / -walk.whole.moment) : 0.0f;
  // Tokens on both sides of the centre weigh differently: what a bin weighs does not tell their number.
  const bool counts = !moments && !keys.by_logit;
  if (!bin.linear)
    keys.by_logit ? fill_bins<true, false>(bin, mine, unit, moment_unit, counts)
                  : fill_bins<false, false>(bin, mine, unit, moment_unit, counts);
  else if (keys.by_logit)
    fill_bins<true, true>(bin, mine, unit, moment_unit, counts);
  else
    fill_bins<false, true>(bin, mine, unit, moment_unit, counts);
  sync_block();
  char* const letters = memory().inbox + team.turn() * ranks() * kLetter;
  char* const letter = letters + rank() * kLetter;
  team.promise_all(kLetter / 16);
  team.post_all(kLetter / 16, [&](int i) { return letter + 16 * i; }, [&](int i) { return load_chunk(mine + 4 * i); });
  team.receive();
  auto all = [&](int b) {
    int64_t sum = 0;
    for (int r = 0; r < ranks(); ++r) sum += reinterpret_cast<const uint32_t*>(letters + r * kLetter)[b];
    return sum;
  };

  const int per_thread = (bin.count + threads() - 1) / threads(), first = thread() * per_thread;
  int64_t v[2] = {0, 0};
  for (int b = first; b < first + per_thread && b < bin.count; ++b) v[0] += all(b), v[1] += all(bin.count + b);
  team.below_in_block(v);
  auto reached = [&](double share, double moment) {
    Sums part = walk.above;
    part.n = by_count ? part.n + share : double(INFINITY);
    if (!by_count) part.mass += share / double(unit);
    if (moments && moment_unit > 0) part.moment -= moment / double(moment_unit) * kLn2;
    return walk.reached(part);
  };
  int64_t stop[1] = {-kBins};
  for (int b = first; b < first + per_thread && b < bin.count; ++b) {
    const int64_t share = all(b), moment = all(bin.count + b);
    if (reached(double(v[0] + share), double(v[1] + moment))) {
      stop[0] = -b;
      break;
    }
    v[0] += share, v[1] += moment;
  }
  const int64_t its = stop[0];
  team.over_block(Max(), stop);
  if (stop[0] == -kBins) return {float(bin.count), 1};
  if (its == stop[0]) {
    const int b = int(-its);
    const double share = double(all(b)), moment = double(all(bin.count + b));
    int low = 0, part = kParts;
    while (part - low > 1) {
      const int middle = (low + part) / 2;
      const double f = double(middle) / kParts;
      if (reached(double(v[0]) + share * f, double(v[1]) + moment * f))
        part = middle;
      else
        low = middle;
    }
    // So many tokens lie in the bin, if they weigh what its lightest weigh.
    const float least = fmaxf(scaled(float_of_key(bin.near(float(b + 1))), top, c), kLeast);
    const float n = counts ? float(moment) : by_count ? float(share) : float(share) / unit / exp2_of(least);
    mine[0] = bits_of_float(float(b) + (float(part) - 0.5f) / kParts);
    mine[1] = bits_of_float(fminf(fmaxf(float(kList) * 0.375f / n, 1.0f / kParts), 1.0f));
  }
  sync_block();
  return {float_of_bits(mine[0]), float_of_bits(mine[1])};
}

// 2. What a look at the groups says: the sums over keys from `high` on; and how many tokens have keys in [low, high). More than kList:
// they are not on the list.
struct Split {
  Sums above;
  int64_t listed;
};

FD_CALLED Split split(Team team, uint32_t low, uint32_t high) {
  const Keys keys = row().walk.keys;
  const float c = row().walk.c;
  const float bottom = row().bottom(), hi = row().hi, top = row().top;
  const float low_key = float_of_key(low), high_key = float_of_key(high);  // floats sort as their keys do
  const float bound = keys.by_logit ? fmaxf(bottom, low_key) : bottom;
  Stash mine = stash();
  int n = 0;
  each_batch<true>(bound, [&](int g, const float (&x)[kEach], double* mass, double* moment) {
    float w[kEach], m[kEach];
    bool listed[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const float y = fminf(scaled(x[j], top, c), 0.0f), key = keys.of(x[j], y);
      const bool alive = x[j] >= bottom && x[j] <= hi, in = alive && key >= high_key;
      listed[j] = alive && !in && key >= low_key;
      w[j] = in ? exp2_of(y) : 0.0f;
      m[j] = w[j] * y;
      n += in;
    }
    *mass = double(sum_of_8(w)), *moment = double(sum_of_8(m));
    mine.add(g, x, listed);
  });
  int64_t v[3] = {0, 0, n};
  const Table table = memory().table;
  double mass = 0, moment = 0;
  const int64_t listed = list_round(
      team, Mixed<1u | 4u>(), v, mine, chunks_posted(),
      [&] {
        post_chunks(team, [&](int local, bool is, double* a, double* b) {
          if (is) *a = table.mass[local], *b = table.moment[local];
        });
      },
      [&] { sum_of_chunks(team, &mass, &moment); },
      [&](Stash again) {
        each_group(bound, [&](int g, const float (&x)[kEach]) {
          bool listed[kEach];
#pragma unroll
          for (int j = 0; j < kEach; ++j) {
            const float key = keys.of(x[j], fminf(scaled(x[j], top, c), 0.0f));
            listed[j] = x[j] >= bottom && x[j] <= hi && key >= low_key && !(key >= high_key);
          }
          again.add(g, x, listed);
        });
      });
  const Split found{sums_of(double(v[2]), mass, moment * kLn2), listed};
  change([&](Row& row) {
    row.forget_list(), row.masses_c = 0;  // no interval of logits is known to be listed
    if (listed <= kList) row.listed = int(listed);
  });
  return found;
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
FD_CALLED Range guess_range(Team team, bool first, Range range) {
  const Walk& walk = row().walk;
  uint32_t from = range.low;
  if (first && walk.keys.by_logit && !walk.by_count()) {
    const uint32_t near = key_of(fmaxf(fmaxf(row().lowest, row().bottom()), row().top - 64.0f / walk.c));
    if (near > range.low && near < range.high - 1) from = near;
  }
  const Binning bin = bins_of(first, from, range.high);
  const Guess at = guess(team, bin);
  if (at.place >= float(bin.count - 1)) return {range.low, bin.near(float(bin.count - 1))};
  return {bin.near(at.place + at.around), at.place < at.around ? range.high : bin.near(at.place - at.around)};
}

FD_CALLED uint32_t search_slices(Team team) {
  if (!row().walk.reached(row().walk.whole)) return 0;
  Range range = range_of_keys(), part = range;
  // Where the last step found the edge: where it was thought to be, or on which side of that.
  enum { kThere, kAbove, kBelow } side = kThere;
  for (bool first = true; range.high - range.low > 1; first = false) {
    // A guess that was wrong was wrong by little: the next part lies beside it, and is wider and wider.
    const uint32_t all = range.high - range.low, wider = part.high - part.low < all / 4 ? 4 * (part.high - part.low) : all;
    part = side == kThere ? guess_range(team, first, range)
                          : side == kAbove ? Range{range.low, range.low + wider} : Range{range.high - wider, range.high};
    if (part.high <= part.low) part.high = part.low + 1;
    if (part.low <= range.low && part.high >= range.high)
      part.low = range.low + (range.high - range.low) / 2;  // a step must part off something
    const Split it = split(team, part.low, part.high);
    if (part.high < range.high) {
      if (row().walk.reached(it.above)) {  // the edge is further up
        range.low = part.high, side = kAbove;
        continue;
      }
      change([&](Row& row) { row.walk.above = it.above; });
    }
    // What holds the lowest survivor holds the end of the walk, whatever rounding says.
    const bool last = part.low <= range.low;
    if (it.listed <= kList) {
      const Range listed = weigh(team, row().walk.keys, row().walk.c, part.low);
      const Sums through = plus(row().walk.above, sum_of_list(part.low, part.high, row().walk.c));
      if (last || row().walk.reached(through)) return it.listed ? search_list(team, listed) : part.high;
      change([&](Row& row) { row.walk.above = through; });
      range.high = part.low, side = kBelow;
      continue;
    }
    const Split whole = split(team, part.low, part.low);
    if (last || row().walk.reached(whole.above)) {
      range = part, side = kThere;
      continue;
    }
    change([&](Row& row) { row.walk.above = whole.above; });
    range.high = part.low, side = kBelow;
  }
  return kept_from(range.low, row().walk.above.n);
}

// ---- 1. near the top

// The largest logits of the groups, by lanes: each lane has the two largest of every 32nd group.
struct Maxima {
  float one, two;
};

// A logit that at least `rank` and not many more groups reach: so many tokens at least lie at or above it. -inf where there are not so
// many groups. With `weight`, one that groups reach whose largest tokens alone weigh so much.
FD_CALLED float bound_by_groups(double rank, double weight, float c) {
  constexpr float kMasked = -1e30f;  // groups that are masked with a number say nothing
  const float* const maxima = memory().table.max;
  const int groups = row().slice.groups;
  const float top = row().top;
  Maxima mine{-INFINITY, -INFINITY};
  for (int g = lane(); g < groups; g += kLanes) {
    const float x = maxima[g] > kMasked ? fminf(maxima[g], row().hi) : -INFINITY;
    mine.two = fmaxf(mine.two, fminf(mine.one, x)), mine.one = fmaxf(mine.one, x);
  }
  int place = 0;  // of this lane's larger one among all lanes'
#pragma unroll 8
  for (int other = 0; other < kLanes; ++other) {
    const float x = shuffle(mine.one, other);
    place += x > mine.one || (x == mine.one && other < lane());
  }
  const float last = float_of_key(~max_in_warp(~key_of(mine.two)));  // the smallest of the lanes' second ones
  for (int take = 4; take <= kLanes + 4; take += 4) {
    float bound = last;
    if (take <= kLanes) bound = shuffle(mine.one, __builtin_ffs(int(ballot(place == take - 1))) - 1);
    if (bound == -INFINITY) return bound;
    uint32_t n = 0;
    double mass = 0, none = 0;
    for (int g = lane(); g < groups; g += kLanes) {
      const bool in = maxima[g] >= bound;
      n += in, mass += in ? double(exp2_of(scaled(fminf(maxima[g], row().hi), top, c))) : 0.0;
    }
    if (weight > 0) sum_in_warp(&mass, &none);
    if (double(sum_in_warp(n)) >= rank && (weight <= 0 || mass >= weight)) return bound;
  }
  return -INFINITY;
}

// Where the kept keys of a prefix begin if that can be told from its largest tokens.
struct Found {
  bool is;
  uint32_t from;
};

FD_CALLED Found search_top(Team team) {
  const Walk& walk = row().walk;
  const int measure = int(walk.cut.measure);
  // So many tokens at least: each weighs at most 1.
  const double least = measure == kCount || measure == kMass ? walk.need : measure == kEntropy ? exp(fmin(walk.need, 9.0)) : 0;
  if (least > kList) return {false, 0};
  double rank = walk.by_count() ? double(walk.cut.need) : 16;
  for (int attempt = 0; attempt < 2; ++attempt, rank *= 4) {
    if (!row().list_covers()) {
      float bound = -INFINITY;
      if ((row().n > kList || row().n < 0) && row().slice.limit > kList) {
        if (rank > kList) break;
        bound = bound_by_groups(rank, measure == kMass ? 0.7 * walk.need : 0, walk.c);
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
    if (walk.reached(sum_of_list(from, 0xffffffffu, walk.c))) return {true, search_list(team, range)};
    if (everything) return {true, 0};
    if (walk.by_count()) break;
  }
  return {false, 0};
}

// Where the kept keys of a prefix begin; 0: everything is kept.
FD_CALLED uint32_t edge_of(Team team, const Cut& cut, const Sums& whole, Keys keys, float c) {
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
