// What: soft tokens: for each row, weights [width] of a few candidate tokens, from their logits and noise; and the sum of the
//   embeddings with such weights. THE arithmetic of both, for the CPU and the CUDA engine; the meaning in torch is fastdecode/engines/reference_soft.py.
// Contract: the engine has sampled these rows and passes their tokens, kept counts and flags. A row's first `kept` candidates are
//   survivors, the largest first. Padding has id -1, weight 0; in a flagged row every float is a NaN.
// Idea: 1. ln pi of the candidates; 2. noise, and the key that weights follow; 3. weights = softmax(key / tau);
//   4. the largest first; 5. the density of what was drawn.
// Who does what: a team works on a row: one thread of a CPU, a warp of a GPU. Its lanes own candidates lane(), lane() + lanes(), ...
// Numbers: double, rounded to float once at the end. The largest logit is subtracted first, and the largest key before tau divides.
// Randomness: coordinates (seed, step, stream; token id), uses kSoftGumbel, or kSoftGamma and kSoftBoost.
// Cost: a few hundred nanoseconds a row on a CPU; a gamma quantile takes half a microsecond. Limits: see cpu/soft.cpp and cuda/soft.cuh.
#pragma once

#include <math.h>
#include <stdint.h>

#include "args.h"
#include "dtype.h"
#include "gamma.h"
#include "philox.h"

#if defined(__CUDACC__)
#define FD_TEAM static __device__
#else
#define FD_TEAM static inline
#endif

namespace fastdecode {

// The word of a token id for one use of the stream.
FD_FN uint32_t soft_word(Coordinates at, Use use, uint64_t request, int64_t id) {
  at.stream = stream_for(use, 0, request);
  return words_of(at, uint32_t(id >> 2)).w[id & 3];
}

FD_FN double concentration_of(double log_pi, double gamma) { return fmax(exp(log_pi), 1e-100) * gamma; }

FD_FN void put(const SoftArgs& args, int64_t at, int64_t id, double weight, double log_pi, double drawn) {
  args.ids[at] = id;
  args.weights[at] = float(weight), args.log_pi[at] = float(log_pi), args.drawn[at] = float(drawn);
}

// The parts of a row that hold no candidate; `value` is 0, or NaN in a flagged row.
template <class Team>
FD_TEAM void pad(const SoftArgs& args, int64_t r, int64_t first, double value, const Team& team) {
  for (int64_t i = first + team.lane(); i < args.width; i += team.lanes())
    put(args, r * args.width + i, -1, value, value, value);
}

template <class Team>
FD_TEAM void put_first(const SoftArgs& args, int64_t r, int64_t id, double density, const Team& team) {
  if (team.lane() != 0) return;
  args.first[r] = id;
  args.density[r] = float(density);
}

// `room`: 3 * width doubles that the team shares.
template <class Team>
FD_TEAM void soften_row(const SoftArgs& args, int64_t r, double* room, const Team& team) {
  const int64_t width = args.width, base = r * width;
  if (args.status[r] != kOk) {
    pad(args, r, 0, double(NAN), team);
    return put_first(args, r, -1, double(NAN), team);
  }
  if (args.soft_rows && !args.soft_rows[r]) {
    const int64_t token = args.tokens[r * args.num_samples];
    const double logprob = double(args.token_logprobs[r * args.num_samples]);
    if (team.lane() == 0) put(args, base, token, 1, logprob, 0);
    pad(args, r, 1, 0, team);
    return put_first(args, r, token, logprob, team);
  }
  const int64_t* const ids = args.candidates + base;
  double *const key = room, *const log_pi = room + width, *const drawn = room + 2 * width;
  int64_t n = width;
  double tau = 1, mass = double(args.num_samples), top = 0, density = 0;
  if (args.noise == kMulti) {  // distinct tokens where they were drawn first, by how often
    for (int64_t i = team.lane(); i < n; i += team.lanes()) {
      int64_t times = 0;
      bool again = false;
      for (int64_t j = 0; j < n; ++j) times += ids[j] == ids[i], again |= j < i && ids[j] == ids[i];
      key[i] = drawn[i] = again ? 0 : double(times);
      log_pi[i] = double(args.token_logprobs[base + i]);
      density += key[i] / mass * log_pi[i];
    }
    density = team.sum(density);
  } else {
    n = args.kept[r] < width ? args.kept[r] : width;
    // 1.
    const Cut& draw = args.plan.cuts[r * args.plan.row_stride + args.plan.count - 1];
    const double t = draw.temperature == 0 ? 1 : double(draw.temperature);
    const char* const x =
        static_cast<const char*>(args.logits.base) + r * args.logits.row_stride * bytes_of(args.logits.dtype);
    double most = double(-INFINITY), z = 0;
    for (int64_t i = team.lane(); i < n; i += team.lanes()) {
      const double logit = double(load_as_float(x, args.logits.dtype, ids[i]));
      log_pi[i] = logit == double(INFINITY) ? 0 : logit;  // such tokens share all mass
      most = fmax(most, log_pi[i]);
    }
    most = team.most(most);
    for (int64_t i = team.lane(); i < n; i += team.lanes()) log_pi[i] = (log_pi[i] - most) / t, z += exp(log_pi[i]);
    const double ln_z = log(team.sum(z));
    // 2.
    const int64_t seed = args.seed.base ? args.seed.base[r * args.seed.stride] : args.one_seed;
    const int64_t step = args.step.base ? args.step.base[r * args.step.stride] : args.one_step;
    const Coordinates at{uint64_t(seed), uint64_t(step), 0};
    const uint64_t request = args.stream.base ? uint64_t(args.stream.base[r * args.stream.stride]) : uint64_t(r);
    double all = 0, peak = double(-INFINITY);
    for (int64_t i = team.lane(); i < n; i += team.lanes()) {
      log_pi[i] -= ln_z;
      key[i] = log_pi[i], drawn[i] = 0;
      if (args.noise == kGumbel) {
        drawn[i] = -log(exponential_of(soft_word(at, kSoftGumbel, request, ids[i])));
        key[i] += args.strength * drawn[i];
        density += -drawn[i] - exp(-drawn[i]) - log(args.strength);
      } else if (args.noise == kDirichlet) {
        const double a = concentration_of(log_pi[i], args.strength);
        key[i] = ln_gamma_quantile(a + 1, uniform_of(soft_word(at, kSoftGamma, request, ids[i]))) -
                 exponential_of(soft_word(at, kSoftBoost, request, ids[i])) / a;
        all += a;
      }
      peak = fmax(peak, key[i]);
    }
    // 3.
    if (args.noise == kGumbel) tau = args.taus ? args.taus[r * args.tau_stride] : args.tau;
    top = team.most(peak), z = 0;
    for (int64_t i = team.lane(); i < n; i += team.lanes()) z += exp((key[i] - top) / tau);
    mass = team.sum(z);
    // 5.
    if (args.noise == kDirichlet)
      for (int64_t i = team.lane(); i < n; i += team.lanes()) {
        const double a = concentration_of(log_pi[i], args.strength);
        drawn[i] = key[i] - top - log(mass);
        density += (a - 1) * drawn[i] - ln_gamma(a);
      }
    density = team.sum(density);
    if (args.noise == kDirichlet) density += ln_gamma(team.sum(all));
  }
  // 4.
  pad(args, r, n, 0, team);
  team.in_order(key, n, [&](int64_t i, int64_t place) {
    const bool real = args.noise != kMulti || key[i] > 0;
    const double weight = args.straight          ? double(place == 0)
                          : args.noise == kMulti ? key[i] / mass
                                                 : exp((key[i] - top) / tau) / mass;
    if (real)
      put(args, base + place, ids[i], weight, log_pi[i], drawn[i]);
    else
      put(args, base + place, -1, 0, 0, 0);
    if (place == 0) args.first[r] = ids[i], args.density[r] = float(density);
  });
}

// Is a mixture one token, of weight 1?
FD_FN bool is_alone(const float* weights, int64_t width) {
  bool alone = weights[0] == 1;
  for (int64_t i = 1; i < width; ++i) alone &= weights[i] == 0;
  return alone;
}

}  // namespace fastdecode
