// What: powers of 2 of many logits, the innermost loop of every rule that needs a sum over the row.
// Contract: exponents from -100 to 0, to 2 parts in 10^7; what lies below is cut off at -100, so that -inf needs no care.
// Idea: with fused multiply-adds nothing is subtracted from a logit. x c = whole + j / kParts + r, and r comes out exactly, however
//   large x c is. What base c is beyond a whole number of parts goes into the table of the roots 2^(j / kParts).
// Who does what: one thread, K vectors side by side: one alone is a chain of dependent instructions that leaves a core
//   idle half of the time. Numbers: float. Randomness: none.
// Cost: 11 operations a vector with AVX2, 10 with AVX-512, 12 without. Limits: none; where x c is large beside 2^23, x - base is
//   taken first (kFar).
#pragma once

#include "simd.h"

namespace fastdecode {
namespace FD_TARGET {

// Exponents of 2 end here: 2^-100 is nothing beside a sum that holds a 1, and -inf comes to it too. Not lower: a product of it
// and the rest that it is multiplied with would be denormal, and take three times as long.
constexpr float kLeastExponent = -100.0f;

// A group with no exponent above this counts for nothing: 262144 tokens of 2^-50 are 2 parts in 10^10 of a sum that holds a 1.
constexpr float kFarExponent = -50.0f;

// A group with no exponent above this one counts for little of any sum of w (x - base): to sum up w x for it, and to take off base times
// the sum of w afterwards, loses 5 bits of a small part, where no |x c| is large (Weights::plain).
constexpr float kPlainExponent = -4.0f, kPlainLargest = 100.0f;

constexpr float kLowest = -3.402823466e38f;  // the smallest finite logit: -inf never survives

// Where x - base is cut off, so that its exponent at scale c is.
FD_FN float least_drop(float c, float exponent = kLeastExponent) { return fmaxf(exponent / c, kLowest); }

// 2^(x c), or 2^((x - base) c).
class Exp2 {
 public:
#if defined(__AVX2__)
  explicit Exp2(V c) : c_(c), magic_(all(kMagic)) { place_roots(1.0f); }
  Exp2(float base, float c) : c_(all(c)) {
    const float shift = rintf(base * c * kParts) / kParts;
    magic_ = all(kMagic - shift);
    place_roots(float(exp2(double(shift) - double(base) * double(c))));
  }

  template <int K>
  inline __attribute__((always_inline)) void of(const V* x, V* w) const {
    V t[K], r[K], root[K], p[K];
    // Adding `magic_` rounds to a whole number of parts, left in the low bits: the lowest of them choose the root, and all, moved
    // to the exponent, add what is whole.
    for (int k = 0; k < K; ++k) t[k] = fused(x[k], c_, magic_);
    for (int k = 0; k < K; ++k) root[k] = chosen_by(t[k]);
    for (int k = 0; k < K; ++k) r[k] = fused(x[k], c_, magic_ - t[k]);
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

  // Less what the number of the part adds to the mantissa on its way to the exponent.
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
      roots_[j] = V(U(load(kRoots + j * kLanes) * factor) - (U(count_from(j * kLanes)) << kToExponent));
  }

  inline __attribute__((always_inline)) V chosen_by(V t) const {
#if defined(__AVX512F__)
    return V(_mm512_permutex2var_ps(__m512(roots_[0]), __m512i(t), __m512(roots_[1])));
#else
    return V(_mm256_permutevar8x32_ps(__m256(roots_[0]), __m256i(t)));
#endif
  }
#else
  explicit Exp2(V c) : c_(c), base_(all(0.0f)) {}
  Exp2(float base, float c) : c_(all(c)), base_(all(base)) {}

  template <int K>
  inline __attribute__((always_inline)) void of(const V* x, V* w) const {
    V y[K], t[K], f[K], p[K];          // y = n + f, n whole, f in [-0.5, 0.5]
    const V magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, left in the low bits
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

// What the logits of a pass over a row ask for. Where few are looked at, kFar will do for all.
enum Reach {
  kNear,       // nothing: no exponent lies below kLeastExponent
  kVanishing,  // those below it are cut off
  kFar,        // and x - base is taken first
};

// `least`: no logit is smaller. Beyond 2^16, the shift of Exp2 would be rounded, and so would the place to cut off at. That place must
// be a finite logit: in a hot row of logits near the lowest, -inf would weigh as much as they do.
FD_FN Reach reach_of(float base, float least, float c) {
  if (!(fabsf(base * c) < 65536.0f) || !(base + kLeastExponent / c > kLowest)) return kFar;
  return (base - least) * c <= -kLeastExponent ? kNear : kVanishing;
}

// Calls with a type whose `value` is that.
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
  Weights(float base, float c)
      : exp2_(kReach == kFar ? Exp2(all(c)) : Exp2(base, c)),
        base_(all(base)),
        least_(all(kReach == kFar ? least_drop(c) : fmaxf(base + least_drop(c), kLowest))) {}

  // And the logits cut off likewise, x or x - base: `drop` knows which. kCut: some x may be -inf.
  template <int K, bool kCut>
  inline __attribute__((always_inline)) void of(const V* x, V* cut, V* w) const {
    for (int k = 0; k < K; ++k) {
      cut[k] = kReach == kFar ? x[k] - base_ : x[k];
      if (kReach != kNear || kCut) cut[k] = max_of(cut[k], least_);
    }
    exp2_.template of<K>(cut, w);
  }

  V drop(V cut) const { return kReach == kFar ? cut : cut - base_; }  // x - base

  // Sums may be of w x where no logit is above this.
  float plain(float c) const {
    const float base = base_[0];
    return kReach != kFar && fabsf(base * c) <= kPlainLargest ? base + kPlainExponent / c : -INFINITY;
  }

  inline __attribute__((always_inline)) V of(V x) const {
    V cut, w;
    of<1, false>(&x, &cut, &w);
    return w;
  }

  // What `base` itself comes to: 1 but for rounding. Sums are divided by it, so that no probability is above 1.
  double one() const { return of(base_)[0]; }

 private:
  const Exp2 exp2_;
  const V base_, least_;
};

}  // namespace FD_TARGET
}  // namespace fastdecode
