// Gamma numbers for Dirichlet weights: ln G(a) = ln Q(u; a + 1) + ln(v) / a, where Q is the quantile of Gamma(a + 1, 1). The twin in
// Python, which also says why, is fastdecode/engines/gamma.py.
//
// Numbers: double, a few parts in 10^10 of a standard deviation. Cost: half a microsecond a quantile.
#pragma once

#include <math.h>

#include "cut.h"

namespace fastdecode {

constexpr double kLnRootTwoPi = 0.91893853320467274178;
constexpr int kMostTerms = 5000;  // of a series or a fraction; shapes below kLargeShape need about 1000
constexpr double kLargeShape = 1e4;

// ln Gamma(x) minus Stirling's (x - 1/2) ln x - x + ln(2 pi) / 2, for x >= 10, to 1e-15.
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

// Gamma(s, 1) is treated in t = ln(x / s), so that no large numbers cancel: the density of t is exp(peak - s * fall(t)).
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
  // P <= x^shape / Gamma(shape + 1) bounds x below. No u in this range reaches the bound above.
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

}  // namespace fastdecode
