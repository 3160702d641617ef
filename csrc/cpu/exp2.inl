// What: powers of 2 of many logits, the innermost loop of every cut that needs a sum over the row.
// Contract: exponents from -100 to 0, to 2 parts in 10^7; lower ones are raised to -100, so that -inf needs no care.
// Idea: with fused multiply-adds nothing is subtracted from a logit. x c = whole + j / kParts + r, and r comes out exactly, however
//   large x c is. The fraction of a part in base c goes into the table of the roots 2^(j / kParts).
// Who does what: one thread, K vectors side by side: one alone is a chain of dependent instructions, which leaves a core
//   idle half of the time. Numbers: float. Randomness: none.
// Cost: 11 operations a vector with AVX2, 10 with AVX-512, 12 without. Limits: none; where x c is large beside 2^23, x - base is
//   taken first (kFar).
#pragma once

#include <math.h>
#include <stdint.h>

#include <type_traits>

#include "../order.h"
#include "simd.inl"

namespace fastdecode {
namespace FD_TARGET {

// Exponents of 2 end here: 2^-100 cannot change a sum that is at least 1, and -inf has this exponent too. Not lower: its product with
// the fraction that it is multiplied by would be denormal, and denormals take three times as long.
constexpr float kLeastExponent = -100.0f;

// A group with no exponent above this is not added up: 262144 tokens of 2^-50 are 2 parts in 10^10 of a sum that is at least 1.
constexpr float kFarExponent = -50.0f;

// A group with no exponent above this is a small part of any sum of w (x - base). There w x may be summed up, and base times the sum
// of w taken off afterwards: that loses 5 bits of a small part, if no |x c| is large (Weights::plain).
constexpr float kPlainExponent = -4.0f, kPlainLargest = 100.0f;

// Sums are taken at a scale: of powers 2^y with y = (x - base) * c, c = 1 / (T ln 2). c = 0: no scale yet.
struct Scale {
  float c = 0, base = 0;
  bool operator==(const Scale& other) const { return c == other.c && base == other.base; }
  bool operator!=(const Scale& other) const { return !(*this == other); }
};

FD_FN float scale_of(double temperature) { return float(1.0 / (temperature * kLn2)); }

// The least x - base at scale c: it has the least exponent.
FD_FN float least_drop(float c, float exponent = kLeastExponent) { return fmaxf(exponent / c, kLowest); }

// 2^(x c), or 2^((x - base) c).
class Exp2 {
 public:
#if defined(__AVX2__)
  explicit Exp2(V c) : c_(c), magic_(broadcast(kMagic)) { place_roots(1.0f); }
  Exp2(float base, float c) : c_(broadcast(c)) {
    const float shift = rintf(base * c * kParts) / kParts;
    magic_ = broadcast(kMagic - shift);
    place_roots(float(exp2(double(shift) - double(base) * double(c))));
  }

  template <int K>
  inline __attribute__((always_inline)) void of(const V* x, V* w) const {
    V t[K], r[K], root[K], p[K];
    // Adding `magic_` rounds to a whole number of parts, left in the low bits. The lowest bits choose the root; all of them, moved to
    // the exponent, add the whole part.
    for (int k = 0; k < K; ++k) t[k] = mul_add(x[k], c_, magic_);
    for (int k = 0; k < K; ++k) root[k] = chosen_by(t[k]);
    for (int k = 0; k < K; ++k) r[k] = mul_add(x[k], c_, magic_ - t[k]);
    for (int k = 0; k < K; ++k) root[k] = V(U(root[k]) + (U(t[k]) << kToExponent));
    if (kParts == 32)  // minimax fits of (2^r - 1) / r
      for (int k = 0; k < K; ++k) p[k] = r[k] * 0.24022651f + 0.69315734f;
    else
      for (int k = 0; k < K; ++k) p[k] = (r[k] * 0.055496223f + 0.24025764f) * r[k] + 0.69314724f;
    for (int k = 0; k < K; ++k) r[k] = r[k] * root[k];
    for (int k = 0; k < K; ++k) w[k] = r[k] * p[k] + root[k];
  }

 private:
  static constexpr int kParts = kLanes == 16 ? 32 : 8, kToExponent = kLanes == 16 ? 18 : 20;
  static constexpr float kMagic = 12582912.0f / kParts;  // 1.5 * 2^23 / kParts
  V c_, magic_, roots_[kParts / kLanes];

  // The number of a part, moved to the exponent, adds to the mantissa too: the roots in the table are less by that.
  inline __attribute__((always_inline)) void place_roots(float factor) {
#if defined(__AVX512F__)
    alignas(64) static constexpr float kRoots[kParts] = {
        1.0f,       1.0218972f, 1.0442737f, 1.0671405f, 1.0905077f, 1.1143868f, 1.1387886f, 1.1637249f,
        1.1892071f, 1.2152474f, 1.2418578f, 1.2690510f, 1.2968396f, 1.3252366f, 1.3542556f, 1.3839099f,
        1.4142135f, 1.4451808f, 1.4768262f, 1.5091645f, 1.5422108f, 1.5759809f, 1.6104903f, 1.6457555f,
        1.6817929f, 1.7186193f, 1.7562522f, 1.7947091f, 1.8340081f, 1.8741677f, 1.9152066f, 1.9571441f};
#else
    alignas(32) static constexpr float kRoots[kParts] = {1.0f,       1.0905077f, 1.1892071f, 1.2968396f,
                                                         1.4142135f, 1.5422108f, 1.6817929f, 1.8340081f};
#endif
    for (int j = 0; j < kParts / kLanes; ++j)
      roots_[j] = V(U(load(kRoots + j * kLanes) * factor) - (U(iota_from(j * kLanes)) << kToExponent));
  }

  inline __attribute__((always_inline)) V chosen_by(V t) const {
#if defined(__AVX512F__)
    return V(_mm512_permutex2var_ps(__m512(roots_[0]), __m512i(t), __m512(roots_[1])));
#else
    return V(_mm256_permutevar8x32_ps(__m256(roots_[0]), __m256i(t)));
#endif
  }
#else
  explicit Exp2(V c) : c_(c), base_(broadcast(0.0f)) {}
  Exp2(float base, float c) : c_(broadcast(c)), base_(broadcast(base)) {}

  template <int K>
  inline __attribute__((always_inline)) void of(const V* x, V* w) const {
    V y[K], t[K], f[K], p[K];                // y = n + f, n whole, f in [-0.5, 0.5]
    const V magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, left in the low bits
    for (int k = 0; k < K; ++k) y[k] = (x[k] - base_) * c_;
    for (int k = 0; k < K; ++k) t[k] = y[k] + magic;
    for (int k = 0; k < K; ++k) f[k] = y[k] - (t[k] - magic);
    for (int k = 0; k < K; ++k) p[k] = f[k] * 1.3264727e-3f + 9.6715130e-3f;  // a minimax fit of 2^f
    for (int k = 0; k < K; ++k) p[k] = p[k] * f[k] + 5.5507336e-2f;
    for (int k = 0; k < K; ++k) p[k] = p[k] * f[k] + 2.4022242e-1f;
    for (int k = 0; k < K; ++k) p[k] = p[k] * f[k] + 6.9314700e-1f;
    for (int k = 0; k < K; ++k) p[k] = p[k] * f[k] + 1.0f;
    for (int k = 0; k < K; ++k) w[k] = V(I(p[k]) + I(U(t[k]) << 23));
  }

 private:
  V c_, base_;
#endif
};

// What a pass must do for logits that lie far below the base. For few tokens kFar is always good enough.
enum Reach {
  kNear,       // nothing: no exponent lies below kLeastExponent
  kVanishing,  // raise lower exponents to it
  kFar,        // that, and take x - base first
};

// `least`: no logit is smaller. Beyond 2^16, the shift of Exp2 would be rounded, and the least x too. The least x must
// be a finite logit: in a hot row of logits near the lowest, -inf would weigh as much as they do.
FD_FN Reach reach_of(Scale s, float least) {
  const float base = s.base, c = s.c;
  if (!(fabsf(base * c) < 65536.0f) || !(base + kLeastExponent / c > kLowest)) return kFar;
  return (base - least) * c <= -kLeastExponent ? kNear : kVanishing;
}

// Calls pass() with a type whose `value` is that Reach.
template <class Pass>
FD_FN auto by_reach(Reach reach, Pass pass) {
  if (reach == kNear) return pass(std::integral_constant<int, kNear>());
  if (reach == kVanishing) return pass(std::integral_constant<int, kVanishing>());
  return pass(std::integral_constant<int, kFar>());
}

// The weights 2^((x - base) c) of many logits.
template <int kReach>
class Weights {
 public:
  explicit Weights(Scale s)
      : exp2_(kReach == kFar ? Exp2(broadcast(s.c)) : Exp2(s.base, s.c)),
        base_(broadcast(s.base)),
        least_(broadcast(kReach == kFar ? least_drop(s.c) : fmaxf(s.base + least_drop(s.c), kLowest))) {}

  // And in `cut` what they are powers of, raised to the least: x or x - base; drop(cut) is x - base. kCut: some x may be -inf.
  template <int K, bool kCut>
  inline __attribute__((always_inline)) void of(const V* x, V* cut, V* w) const {
    for (int k = 0; k < K; ++k) {
      cut[k] = kReach == kFar ? x[k] - base_ : x[k];
      if (kReach != kNear || kCut) cut[k] = max_of(cut[k], least_);
    }
    exp2_.template of<K>(cut, w);
  }

  V drop(V cut) const { return kReach == kFar ? cut : cut - base_; }  // x - base

  // Groups with no logit above this may sum up w x, see kPlainExponent.
  float plain(float c) const {
    const float base = base_[0];
    return kReach != kFar && fabsf(base * c) <= kPlainLargest ? base + kPlainExponent / c : -INFINITY;
  }

  inline __attribute__((always_inline)) V of(V x) const {
    V cut, w;
    of<1, false>(&x, &cut, &w);
    return w;
  }

  // The weight of `base` itself: 1 but for rounding. Sums are divided by it, so that no probability is above 1.
  double one() const { return of(base_)[0]; }

 private:
  const Exp2 exp2_;
  const V base_, least_;
};

}  // namespace FD_TARGET
}  // namespace fastdecode
