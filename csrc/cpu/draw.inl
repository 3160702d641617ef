// What: tokens from survivors, by the two-level Gumbel draw of philox.h; greedy rows take their largest logit.
// Contract: at least one survivor; lowest id wins a tie.
// Idea: 1. the mass of each group of 256 ids, over its survivors; 2. the group that wins mass / E with E = -log(v), which is
//   the argmax of log mass + Gumbel noise with one logarithm less; 3. in it, the token that wins w / E.
// Who does what: one thread; group masses are shared by all samples of a row.
// Numbers: masses and exponentials in double; w in float.
// Randomness: coordinates (seed, step, stream; group id, use kGroup) and (...; token id, use kToken).
// Cost: groups with survivors + 256 noises a sample; no pass over the row.
// Limits: 2^34 tokens (the counter holds index / 4 in 32 bits).
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../philox.h"
#include "exp2.inl"
#include "masses.inl"
#include "row.inl"
#include "simd.inl"
#include "survivors.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

constexpr int kQuads = 16;  // four words each

// philox4x32_10 for several counters, one to a lane. Only the lower half of a lane counts; the upper half is never cleared.
static void words_from(const Coordinates& at, int64_t first, uint32_t* words) {
  constexpr int kAbreast = kLanes / 2;
  for (int quad = 0; quad < kQuads; quad += kAbreast) {
    W c0, c1 = W{} + at.step, c2 = W{} + at.stream, c3 = W{} + (at.stream >> 32);
    for (int lane = 0; lane < kAbreast; ++lane) c0[lane] = uint64_t(first / 4 + quad + lane);
    uint32_t key0 = uint32_t(at.seed), key1 = uint32_t(at.seed >> 32);
    for (int round = 0; round < kRounds; ++round, key0 += kKeyStep0, key1 += kKeyStep1) {
      const W p0 = mul_even(c0, W{} + kFactor0), p1 = mul_even(c2, W{} + kFactor1);
      c0 = (p1 >> 32) ^ c1 ^ uint64_t(key0), c1 = p1, c2 = (p0 >> 32) ^ c3 ^ uint64_t(key1), c3 = p0;
    }
    const W pairs[2] = {(c0 & 0xffffffff) | c1 << 32, (c2 & 0xffffffff) | c3 << 32};
    for (int lane = 0; lane < kAbreast; ++lane)
      for (int half = 0; half < 2; ++half) {
        const uint64_t two = pairs[half][lane];
        memcpy(words + 4 * (quad + lane) + 2 * half, &two, sizeof two);
      }
  }
}

// E = -log(v) for indices [first, first + n), first a multiple of 4; writes up to 63 entries more.
static void exponentials(const Coordinates& at, int64_t first, int64_t n, double* out) {
  uint32_t words[4 * kQuads];
  for (int64_t i = 0; i < n; i += 4 * kQuads) {
    words_from(at, first + i, words);
    for (int k = 0; k < 4 * kQuads; ++k) out[i + k] = exponential_of(words[k]);
  }
}

FD_FN double exponential_at(const Coordinates& at, int64_t index) {
  return exponential_of(words_of(at, uint32_t(index >> 2)).w[index & 3]);
}

static double exponential_for(const Coordinates& at, int64_t index) { return exponential_at(at, index); }

// The index i in [0, n) with the largest mass(i) / E at first + i, the first of equals; some mass must be above 0. `upper(i)` is no less
// than mass(i), and quicker. `bound` has room for n + 63 entries.
// E is at least 1 - v, and little more where it is small. So upper / (1 - v) rules nearly all indices out, and only the others
// need a logarithm.
template <class Upper, class Mass>
static int64_t winner(const Coordinates& at, int64_t first, int64_t n, double* bound, Upper upper, Mass mass) {
  uint32_t words[4 * kQuads];
  D highest{};
  for (int64_t i = 0; i < n; i += 4 * kQuads) {
    words_from(at, first + i, words);
    for (int k = 0; k < 4 * kQuads; ++k)
      bound[i + k] = (i + k < n ? upper(i + k) : 0.0) / ((double(words[k]) + 0.5) * (1.0 / 4294967296.0));
    for (int k = 0; k < 4 * kQuads; k += kLanes / 2) {
      D some;
      memcpy(&some, bound + i + k, sizeof some);
      highest = some > highest ? some : highest;
    }
  }
  auto score = [&](int64_t i) { return mass(i) / exponential_at(at, first + i); };
  double largest = 0;
  for (int lane = 0; lane < kLanes / 2; ++lane) largest = highest[lane] > largest ? highest[lane] : largest;
  int64_t best = 0;
  while (bound[best] != largest) ++best;
  const double reached = score(best) * (1 - 1e-9);  // rounding
  double best_score = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (!(bound[i] >= reached)) continue;
    const double its = score(i);
    if (its > best_score) best_score = its, best = i;
  }
  return best;
}

class Drawer {
 public:
  // 1. Group masses at the scale of a temperature, once for all `samples`.
  Drawer(Survivors& survivors, const Row& row, const Workspace& ws, Scale scale, int64_t samples)
      : survivors_(survivors),
        gathered_(survivors.gathered()),
        interval_(survivors.interval()),
        row_(row),
        ws_(ws),
        scale_(scale),
        mass_(survivors.sums_at(scale).mass) {
    if (!gathered_) {
      runs_ = row.groups();
      if (samples > 2) survivors.masses().settle();
      return;
    }
    const int64_t n = survivors.count();
    for (int64_t i = 0; i < n; ++i) {
      const int32_t group = ws.id[i] / kGroupSize;
      if (i == 0 || group != ws.run_group[runs_ - 1]) {
        ws.run_group[runs_] = group, ws.run_start[runs_] = int32_t(i), ws.run_mass[runs_] = 0;
        ++runs_;
      }
      ws.run_mass[runs_ - 1] += double(ws.w[i]);
    }
    ws.run_start[runs_] = int32_t(n);
  }

  double mass() const { return mass_; }  // of all survivors, relative to the base of the scale

  int64_t draw(Coordinates at, uint64_t sample, uint64_t request) const {
    at.stream = stream_for(kGroup, sample, request);
    const int64_t run = gathered_ ? winning_run(at) : winning_group(at);
    at.stream = stream_for(kToken, sample, request);
    return gathered_ ? winning_gathered(at, run) : winning_token(at, run);
  }

 private:
  // 2.
  int64_t winning_run(const Coordinates& at) const {
    const bool many = runs_ * 4 > row_.groups();  // then the noise of all groups at once is cheaper
    if (many) exponentials(at, 0, row_.groups(), ws_.group_noise);
    int64_t best = 0;
    double best_score = -1;
    for (int64_t run = 0; run < runs_; ++run) {
      const int32_t group = ws_.run_group[run];
      const double score = ws_.run_mass[run] / (many ? ws_.group_noise[group] : exponential_at(at, group));
      if (score > best_score) best_score = score, best = run;
    }
    return best;
  }

  int64_t winning_group(const Coordinates& at) const {
    const double* mass = ws_.group_mass;
    auto plain = [&](int64_t g) { return mass[g]; };
    const GroupMasses& masses = survivors_.masses();
    if (!masses.lack_edge()) return winner(at, 0, runs_, ws_.group_noise, plain, plain);
    auto upper = [&](int64_t g) { return masses.upper_bound_of(g); };
    auto exact = [&](int64_t g) { return masses.of(g); };
    return winner(at, 0, runs_, ws_.group_noise, upper, exact);
  }

  // 3.
  int64_t winning_gathered(const Coordinates& at, int64_t run) const {
    const int32_t start = ws_.run_start[run], end = ws_.run_start[run + 1];
    double noise[kGroupSize + 63];
    const int64_t first = int64_t(ws_.run_group[run]) * kGroupSize;
    const bool many = end - start > 16;
    if (many) exponentials(at, first, kGroupSize, noise);
    int64_t best = ws_.id[start];
    double best_score = -1;
    for (int32_t i = start; i < end; ++i) {
      const int64_t id = ws_.id[i];
      const double score = double(ws_.w[i]) / (many ? noise[id - first] : exponential_at(at, id));
      if (score > best_score) best_score = score, best = id;
    }
    return best;
  }

  int64_t winning_token(const Coordinates& at, int64_t group) const {
    alignas(64) float buffer[kGroupSize], w[kGroupSize];
    double bound[kGroupSize + 63];
    const float* x = row_.group(group, -INFINITY, buffer);
    const float bottom = interval_.bottom();
    const Weights<kFar> weights(scale_);
    for (int i = 0; i < kGroupSize; i += kLanes) {
      const V v = load(x + i);
      store(w + i, select_or_zero(Interval::has(v, bottom, interval_.hi), weights.of(v)));
    }
    auto weight = [&](int64_t i) { return double(w[i]); };
    return group * kGroupSize + winner(at, group * kGroupSize, kGroupSize, bound, weight, weight);
  }

  const Survivors& survivors_;
  const bool gathered_;
  const Interval interval_;
  const Row& row_;
  const Workspace& ws_;
  const Scale scale_;
  const double mass_;
  int64_t runs_ = 0;  // groups with gathered survivors, or all groups
};

// The lowest id whose logit is `x`, which must lie in the row.
static int64_t first_id_of(const Row& row, const Workspace& ws, float x) {
  for (int64_t g = 0; g < row.groups(); ++g) {
    if (!(ws.group_max[g] >= x)) continue;
    for (int64_t i = g * kGroupSize; i < (g + 1) * kGroupSize && i < row.limit; ++i)
      if (row.at(i) == x) return i;
  }
  return 0;
}

}  // namespace FD_TARGET
}  // namespace fastdecode
