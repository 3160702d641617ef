// Floats in their order: the bits of a float, keys that compare as unsigned integers, the lowest logit; and ln 2, the unit of exponents.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cut.h"

namespace fastdecode {

constexpr double kLn2 = 0.693147180559945309417;
constexpr float kLowest = -3.402823466e38f;  // the smallest finite logit: -inf never survives

FD_FN float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

FD_FN uint32_t bits_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// Logits as unsigned numbers in the same order. Equal floats have equal keys, 0 and -0 among them. No number has the key 0.
FD_FN uint32_t key_of(float x) {
  const uint32_t bits = bits_of_float(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

FD_FN float float_of_key(uint32_t key) { return float_of_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

}  // namespace fastdecode
