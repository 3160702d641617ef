// What: for prefixes that keep many tokens: a guess from a sample of the row of two keys with the edge between them, and one
//   pass that adds up the tokens above them and gathers the tokens between them.
// Contract: the guess may be wrong; whoever uses it looks at the exact sums of the pass and falls back if the edge is not
//   there. The answer never depends on the guess.
// Idea: 1. the largest tokens, which are at hand, count for themselves; of the others one stretch of 16 tokens of each or every
//   other group, its place moving from group to group, stands for all; 2. the edge of the same prefix among those, and the edges if
//   the sums were four standard deviations larger or smaller; 3. the pass.
// Who does what: one thread. Numbers: as in kernels.inl. Randomness: none, the places are fixed.
// Cost: the sample a tenth of a pass; the pass as much as row_sums. Limits: none.

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
};

constexpr int kStretch = 16;  // tokens of a group in the sample

// 1. Turns the n gathered tokens, all those at or above `bound`, into keys, and adds the sample of those below it: keys, weights
//    and y in x, w and y of the workspace. A weight is a token's mass, or 1 if `by_count`.
static int64_t take_sample(const Row& row, const Workspace& ws, int64_t n, float bound, float max, float c,
                           Interval interval, Keys keys, bool by_count) {
  alignas(64) float buffer[kGroupSize];
  for (int64_t i = 0; i < n; i += kLanes) {
    store(ws.x + i, Keys::of(keys, load(ws.x + i), load(ws.y + i)));
    if (by_count) store(ws.w + i, all(1.0f));
  }
  const float bottom = interval.bottom();
  for (int64_t g = 0; g < row.groups(); g += row.groups() < 256 ? 1 : 2) {
    if (!(ws.group_max[g] >= bottom)) continue;
    const float* x = row.group(g, -INFINITY, buffer) + (g * 5 / 2 % (kGroupSize / kStretch)) * kStretch;
    for (int i = 0; i < kStretch; i += kLanes) {
      const V v = load(x + i), y = scaled(v, all(max), all(c));
      const uint32_t bits = bits_of(both(Interval::has(v, bottom, interval.hi), less(v, all(bound))));
      if (!bits) continue;
      pack(Keys::of(keys, v, y), bits, ws.x + n), pack(y, bits, ws.y + n);
      pack(by_count ? all(1.0f) : exp2_of(y), bits, ws.w + n);
      n += __builtin_popcount(bits);
    }
  }
  return n;
}

struct Bracket {
  float above, below;  // the edge is guessed to lie at a key in [below, above]
};

// 2. The first `exact` of n keys stand for themselves, the others for all the rest, whose mass is known.
static Bracket guess(Cut cut, Sums whole, const Workspace& ws, int64_t exact, int64_t n) {
  double rest = whole.mass;
  if (int(cut.measure) == kCount) cut.measure = kMass, rest = whole.n, whole = {whole.n, 1, 0};
  cut.keep = 1;
  for (int64_t i = 0; i < exact; ++i) rest -= double(ws.w[i]);
  const int64_t end = (n + kLanes - 1) / kLanes * kLanes, start = exact / kLanes * kLanes;
  for (int64_t i = n; i < end; ++i) ws.x[i] = -INFINITY, ws.w[i] = 0;
  D sums{};
  for (int64_t i = start; i < end; i += kLanes) sums += pairs_of(load(ws.w + i));
  double sampled = sum_of_lanes(sums);
  for (int64_t i = start; i < exact; ++i) sampled -= double(ws.w[i]);
  const float each = sampled > 0 ? float(rest / sampled) : 1.0f;
  for (int64_t i = exact; i < n; ++i) ws.w[i] *= each;
  auto edge_from = [&](const Sums& before) {
    memcpy(ws.key, ws.x, size_t(n) * 4), memcpy(ws.key_w, ws.w, size_t(n) * 4), memcpy(ws.key_y, ws.y, size_t(n) * 4);
    const Edge edge = search(cut, whole, ws, n, before);
    return edge.stopped ? edge.key : kLowest;
  };
  const float middle = edge_from({});
  float weight = 0, y = 0;                                      // what is at the edge
  V above = all(0.0f), above2 = all(0.0f), below2 = all(0.0f);  // sums of the sample on each side; rough ones will do
  for (int64_t i = start; i < end; i += kLanes) {
    const V w = load(ws.w + i), key = load(ws.x + i), up = zero_unless(at_least(key, all(middle)), w), down = w - up;
    above += up, above2 += up * up, below2 += down * down;
    for (uint32_t at = bits_of(both(at_least(key, all(middle)), at_least(all(middle), key))); at; at = 0)
      weight = ws.w[i + __builtin_ctz(at)], y = ws.y[i + __builtin_ctz(at)];
  }
  auto sum = [](V x) { return sum_of_lanes(pairs_of(x)); };
  const double share =
      rest > 0 ? fmin(sum(above) / rest, 1.0) : 0;  // the sum above errs by what is on either side of the edge
  const double margin = 4 * sqrt((1 - share) * (1 - share) * sum(above2) + share * share * sum(below2)) + 8.0 * weight;
  Bracket bracket{edge_from({0, margin, margin * y * kLn2}), kLowest};
  // More than the row holds may be asked for: then with less certainty, rather than the whole rest of the row.
  for (double less = margin; bracket.below == kLowest && less > margin / 32; less /= 2)
    bracket.below = edge_from({0, -less, -less * y * kLn2});
  return bracket;
}

struct Split {
  Sums above;
  float lowest = INFINITY, highest = -INFINITY;  // logits of the tokens above, if they are not ordered by logit
  int64_t between = 0;                           // tokens gathered
};

// 3. Adds up the survivors whose keys lie above the bracket, in total and by group, and gathers those inside it.
template <bool kByLogit>
static Split split(const Row& row, const Workspace& ws, float max, float c, Interval interval, Keys keys,
                   Bracket bracket) {
  const float bottom = kByLogit && bracket.below > interval.bottom() ? bracket.below : interval.bottom();
  const V max_v = all(max), c_v = all(c);
  Split found;
  D masses{}, moments{};
  V minus_lowest = all(-INFINITY), highest = all(-INFINITY);
  int64_t count = 0;
  keys.by_logit = kByLogit;
  row.each(-INFINITY, [&](int64_t g, auto x) FD_INLINE {
    ws.group_mass[g] = 0;
    if (!(ws.group_max[g] >= bottom)) return;
    D group_mass{};
    for (int chunk = 0; chunk < kGroupSize; chunk += kChunk) {
      V mass = all(0.0f), moment = all(0.0f);
      for (int i = chunk; i < chunk + kChunk; i += kStep * kLanes) {
        V v[kStep], y[kStep], w[kStep];
        for (int k = 0; k < kStep; ++k) v[k] = x[i + k * kLanes];
        for (int k = 0; k < kStep; ++k) y[k] = scaled(v[k], max_v, c_v);
        exp2_of<kStep>(y, w);
        for (int k = 0; k < kStep; ++k) {
          const V key = Keys::of(keys, v[k], y[k]);
          const M in = Interval::has(v[k], bottom, interval.hi), above = both(in, less(all(bracket.above), key));
          const uint32_t between = bits_of(both(first_only(in, above), at_least(key, all(bracket.below))));
          count += __builtin_popcount(bits_of(above));
          w[k] = zero_unless(above, w[k]);
          mass += w[k];
          moment += w[k] * y[k];
          if (!kByLogit) {
            minus_lowest = max_of(minus_lowest, choose(above, -v[k], all(-INFINITY)));
            highest = max_of(highest, choose(above, v[k], all(-INFINITY)));
          }
          // Nearly every vector holds one or none: where packing is two instructions, a branch would cost more.
          if (kLanes == 16 || between)
            found.between =
                append(ws, v[k], count_from(int32_t(g * kGroupSize + i + k * kLanes)), between, found.between);
        }
      }
      group_mass += pairs_of(mass);
      moments += pairs_of(moment);
    }
    ws.group_mass[g] = sum_of_lanes(group_mass);
    masses += group_mass;
  });
  found.above = {double(count), sum_of_lanes(masses), sum_of_lanes(moments) * kLn2};
  found.lowest = -largest_lane(minus_lowest), found.highest = largest_lane(highest);
  return found;
}

}  // namespace FD_TARGET
}  // namespace fastdecode
