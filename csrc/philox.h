// THE random stream: counter-based and stateless; the twin in torch is fastdecode/philox.py.
//
//   key     = seed                                     64 bits
//   counter = (index >> 2, step, stream)               32 + 32 + 64 bits
//   stream  = use << 56 | sample << 40 | request id    8 + 16 + 40 bits
//   word    = Philox4x32-10(counter, key)[index & 3]   (Salmon, Moraes, Dror, Shaw: SC11)
//   v       = 1 - (word + 0.5) * 2^-32                 in [2^-33, 1 - 2^-33], exact in double
//   noise   = -log(-log(v))                            Gumbel(0, 1), from -3.2 to 22.9
//
// A draw compares logits plus noise. The engines may compare exp(logit) / -log(v) instead, which has the same order and needs
// one logarithm less. No batch position, block shape or vector width enters.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cut.h"
#include "order.h"

namespace fastdecode {

// What a stream is used for, in its top 8 bits: no two uses share a word.
enum Use { kToken = 0, kGroup = 1, kSoftGumbel = 2, kSoftGamma = 3, kSoftBoost = 4 };  // kSoft*: soft tokens
constexpr int kGroupSize = 256;  // consecutive token ids that share one noise in the first level of the draw
constexpr int kStreamBits = 40, kSampleBits = 16;

struct Words {
  uint32_t w[4];
};

constexpr int kRounds = 10;
constexpr uint32_t kFactor0 = 0xD2511F53u, kFactor1 = 0xCD9E8D57u, kKeyStep0 = 0x9E3779B9u, kKeyStep1 = 0xBB67AE85u;

FD_FN Words philox4x32_10(Words counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = uint64_t(counter.w[0]) * kFactor0, p1 = uint64_t(counter.w[2]) * kFactor1;
    counter = {{uint32_t(p1 >> 32) ^ counter.w[1] ^ key0, uint32_t(p1), uint32_t(p0 >> 32) ^ counter.w[3] ^ key1,
                uint32_t(p0)}};
    key0 += kKeyStep0;
    key1 += kKeyStep1;
  }
  return counter;
}

struct Coordinates {
  uint64_t seed = 0, step = 0, stream = 0;
};

FD_FN uint64_t stream_for(Use use, uint64_t sample, uint64_t request) {
  return uint64_t(use) << (kStreamBits + kSampleBits) | sample << kStreamBits |
         (request & ((uint64_t(1) << kStreamBits) - 1));
}

// The words of indices 4 * quad .. 4 * quad + 3.
FD_FN Words words_of(const Coordinates& at, uint32_t quad) {
  return philox4x32_10({{quad, uint32_t(at.step), uint32_t(at.stream), uint32_t(at.stream >> 32)}}, uint32_t(at.seed),
                       uint32_t(at.seed >> 32));
}

FD_FN double uniform_of(uint32_t word) { return (double(0xFFFFFFFFu - word) + 0.5) * (1.0 / 4294967296.0); }

// -log(v) in double for v in (0, 1), to about 1e-15; a plain loop of these becomes vector code.
FD_FN double exponential_of(uint32_t word) {
  const double v = uniform_of(word);
  uint64_t bits;
  memcpy(&bits, &v, 8);
  // v = m * 2^e with m in [sqrt(1/2), sqrt(2)): the offset makes the exponent field count from there.
  const uint64_t shifted = bits - 0x3fe6a09e667f3bcdull + (1023ull << 52);
  const uint64_t exponent = shifted >> 52;  // 1023 + e
  const uint64_t m_bits = bits - (exponent << 52) + (1023ull << 52);
  const uint64_t e_bits = exponent | 0x4330000000000000ull;  // 2^52 + exponent as a double
  double m, e;
  memcpy(&m, &m_bits, 8);
  memcpy(&e, &e_bits, 8);
  e -= 4503599627370496.0 + 1023.0;
  const double s = (m - 1) / (m + 1), s2 = s * s;
  double p = 1.0 / 17;
  p = p * s2 + 1.0 / 15;
  p = p * s2 + 1.0 / 13;
  p = p * s2 + 1.0 / 11;
  p = p * s2 + 1.0 / 9;
  p = p * s2 + 1.0 / 7;
  p = p * s2 + 1.0 / 5;
  p = p * s2 + 1.0 / 3;
  return -(e * kLn2 + 2 * s * (1 + s2 * p));
}

}  // namespace fastdecode
