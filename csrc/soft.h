// What: soft tokens: for each row, weights [width] of a few candidate tokens, from their logits and noise; and the sum of the
//   embeddings with such weights. THE arithmetic of both, for the CPU and the CUDA engine; the meaning in torch is fastdecode/engines/reference_soft.py.
// Contract: the engine has sampled these rows, and tells their tokens, kept counts and flags. A row's first `kept` candidates are
//   survivors, the largest first. Padding has id -1, weight 0; in a flagged row every float is a NaN.
// Idea: 1. ln pi of the candidates; 2. noise, and the key that weights follow; 3. weights = softmax(key / tau);
//   4. the largest first; 5. the density of what was drawn.
// Who does what: a team works on a row: one thread of a CPU, a warp of a GPU. Its lanes own candidates lane(), lane() + lanes(), ...
// Numbers: double, rounded to float once at the end; logits are taken relative to the largest, and keys too before tau divides.
// Randomness: coordinates (seed, step, stream; token id), uses kSoftGumbel, or kSoftGamma and kSoftBoost.
// Cost: a few hundred nanoseconds a row on a CPU; a gamma quantile takes half a microsecond. Limits: those of the engines' rooms.
#pragma once

#include "args.h"
#include "dtype.h"
#include "philox.h"

#if defined(__CUDACC__)
#define FD_TEAM static __device__
#else
#define FD_TEAM static inline
#endif

namespace fastdecode {

enum Noise { kNoNoise = 0, kGumbel = 1, kDirichlet = 2, kMulti = 3 };  // as record.py: NOISES

struct SoftArgs {
  Logits logits;
  Plan plan;  // of which the temperature of the draw counts
  Coordinate seed, step, stream;
  int64_t one_seed = 0, one_step = 0;  // for all rows, where those hold no address
  int noise = kNoNoise;
  double strength = 1;           // gumbel: the noise's scale; dirichlet: gamma
  double tau = 1;                // gumbel
  const double* taus = nullptr;  // [rows]: instead of tau
  int64_t tau_stride = 0;
  const bool* soft_rows = nullptr;  // [rows]; null: all. Ordinary rows have the one token that was drawn
  bool straight = false;            // weights are 1 for the first, 0 for the others
  int64_t width = 0;
  const int64_t* candidates = nullptr;  // [rows, width]; multi: the drawn tokens
  // What the engine found for these rows.
  int64_t num_samples = 1;
  const int64_t* tokens = nullptr;  // [rows, num_samples]
  const float* token_logprobs = nullptr;
  const int64_t* kept = nullptr;
  const uint8_t* status = nullptr;
  // Answers.
  int64_t* ids = nullptr;    // [rows, width]
  float* weights = nullptr;  // [rows, width]
  int64_t* first = nullptr;  // [rows]
  float* log_pi = nullptr;   // [rows, width]
  float* drawn = nullptr;    // [rows, width]
  float* density = nullptr;  // [rows]
};

struct EmbedArgs {
  const void* table = nullptr;  // [vocab, columns]
  int dtype = 0;
  int64_t vocab = 0, columns = 0, row_stride = 0;
  int64_t rows = 0, width = 0;
  const int64_t* ids = nullptr;    // [rows, width], -1 is padding
  const float* weights = nullptr;  // [rows, width]
  void* out = nullptr;             // [rows, columns]
};

// ---- gamma numbers: ln G(a) = ln Q(u; a + 1) + ln(v) / a, Q the quantile of Gamma(a + 1, 1): see gamma.py

constexpr double kLnRootTwoPi = 0.91893853320467274178;
constexpr int kMostTerms = 5000;  // of a series or a fraction; at shapes below kLargeShape some 1000 are enough
constexpr double kLargeShape = 1e4;

// ln Gamma(x) less Stirling's (x - 1/2) ln x - x + ln(2 pi) / 2, for x >= 10, to 1e-15.
FD_FN double stirling_rest(double x) {
  const double y = 1 / (x * x);
  return (1.0 / 12 +
          y * (-1.0 / 360 + y * (1.0 / 1260 + y * (-1.0 / 1680 + y * (1.0 / 1188 - y * (691.0 / 360360)))))) /
         x;
}

// ln Gamma(x) for x > 0. (The C library's writes to a global variable.)
FD_FN double ln_gamma(double x) {
  double product = 1;
  for (; x < 10; x += 1) product *= x;
  return (x - 0.5) * log(x) - x + kLnRootTwoPi + stirling_rest(x) - log(product);
}

// Gamma(s, 1) is looked at in t = ln(x / s), so that large numbers need not cancel: the density of t is exp(peak - s * fall(t)).
FD_FN double fall_of(double t) { return expm1(t) - t; }

FD_FN double ln_peak_of(double s) {
  return s < 10 ? s * log(s) - s - ln_gamma(s) : 0.5 * log(s) - kLnRootTwoPi - stirling_rest(s);
}

// P(X <= x), or P(X > x), where the density is `density`.
FD_FN double tail_of(double s, double t, double density, bool upper) {
  if (s > kLargeShape) {  // Temme's expansion; |h| < 0.07 wherever the answer is above 2^-34, so few terms are left
    const double fall = fall_of(t), h = copysign(sqrt(2 * fall), t);
    const double c0 =
        -1.0 / 3 + h * (1.0 / 12 + h * (-2.0 / 135 + h * (1.0 / 864 + h * (1.0 / 2835 - h * 1.7875514e-4))));
    const double c1 = -1.0 / 540 + h * (-1.0 / 288 + h * (1.0 / 378));
    const double rest = exp(-s * fall) / sqrt(6.283185307179586477 * s) * (c0 + c1 / s);
    const double z = h * sqrt(s / 2);
    return upper ? 0.5 * erfc(z) + rest : 0.5 * erfc(-z) - rest;
  }
  const double x = s * exp(t);
  if (x < s + 1) {
    double term = 1 / s, sum = term;
    for (int n = 1; n < kMostTerms && term > sum * 1e-17; ++n) term *= x / (s + n), sum += term;
    const double below = density * sum;
    return upper ? 1 - below : below;
  }
  // Legendre's continued fraction, from the front (Lentz).
  double b = x + 1 - s, c = 1e300, d = 1 / b, fraction = d;
  for (int n = 1; n < kMostTerms; ++n) {
    const double a = -n * (n - s);
    b += 2;
    d = a * d + b, c = b + a / c;
    if (fabs(d) < 1e-300) d = 1e-300;
    if (fabs(c) < 1e-300) c = 1e-300;
    d = 1 / d;
    fraction *= c * d;
    if (fabs(c * d - 1) < 1e-16) break;
  }
  const double above = density * fraction;
  return upper ? above : 1 - above;
}

// ln x with P(X <= x) = u, for shapes >= 1 and u in [2^-33, 1 - 2^-33]: Newton's method inside a bracket that shrinks.
FD_FN double ln_gamma_quantile(double shape, double u) {
  const double ln_shape = log(shape), ln_peak = ln_peak_of(shape);
  const bool upper = u > 0.5;
  // P <= x^shape / Gamma(shape + 1) bounds x below; above, no such u gets so far.
  double low = (log(u) + ln_gamma(shape + 1)) / shape - ln_shape;
  double high = fmax(low, log(2 * shape + 50) - ln_shape);
  // Wilson's and Hilferty's cube, with a rough normal quantile: a few percent off.
  const double z = 4.91 * (pow(u, 0.14) - pow(1 - u, 0.14)), root = 1 - 1 / (9 * shape) + z / (3 * sqrt(shape));
  double t = fmin(fmax(root > 0 ? 3 * log(root) : low, low), high);
  for (int step = 0; step < 60; ++step) {
    const double density = exp(ln_peak - shape * fall_of(t));
    const double excess = upper ? (1 - u) - tail_of(shape, t, density, true) : tail_of(shape, t, density, false) - u;
    if (excess > 0)
      high = t;
    else
      low = t;
    double moved = t - excess / density;
    const bool inside = moved >= low && moved <= high;
    if (!inside) moved = 0.5 * (low + high);
    const double by = fabs(moved - t);
    t = moved;
    if (by < 1e-10 / sqrt(shape) || high - low <= 0) break;
  }
  return t + ln_shape;
}

// ---- one row

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

// ---- the embedding

// Is a mixture one token, of weight 1?
FD_FN bool is_alone(const float* weights, int64_t width) {
  bool alone = weights[0] == 1;
  for (int64_t i = 1; i < width; ++i) alone &= weights[i] == 0;
  return alone;
}

}  // namespace fastdecode
