// The three types of logits: codes, exact loads to float, stores rounded once to nearest even.
#pragma once

#include <math.h>
#include <stdint.h>

#include "cut.h"
#include "order.h"

namespace fastdecode {

enum Dtype { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

FD_FN int64_t bytes_of(int dtype) { return dtype == kFloat32 ? 4 : 2; }

FD_FN float from_bf16(uint16_t h) { return float_of_bits(uint32_t(h) << 16); }

FD_FN float from_f16(uint16_t h) {
  // The exponent moves from bias 15 to bias 127 by one exact multiplication; subnormals come out right with it.
  const uint32_t magnitude = uint32_t(h & 0x7fff) << 13, sign = uint32_t(h & 0x8000) << 16;
  const float scaled = float_of_bits(magnitude) * 0x1p112f;
  const uint32_t special = (h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  return float_of_bits(bits_of_float(scaled) | special | sign);
}

FD_FN uint16_t to_bf16(float x) {
  const uint32_t bits = bits_of_float(x);
  if (x != x) return uint16_t(bits >> 16 | 0x40);  // keep a NaN a NaN
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

FD_FN uint16_t to_f16(float x) {
  const uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 65536 or beyond: infinity
  if (magnitude < 0x38800000) {                                 // below 2^-14: subnormal; 0.5f lines its last bit up
    const uint32_t aligned = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
    return uint16_t(sign | aligned);
  }
  return uint16_t(sign | ((magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

FD_FN float largest_of(int dtype) {
  return dtype == kFloat16 ? 65504.0f : dtype == kBFloat16 ? 3.38953139e38f : 3.402823466e38f;
}

// Many programs mask a logit with the lowest number of its type instead of -inf, and float32 logits may have been bfloat16 when
// that was done. A standard deviation or a sum of p^2 leaves such survivors out, unless there are no others: of survivors at or above
// `bottom`, the largest of which is `top`, those at or above the answer count.
FD_FN float bottom_unmasked(float bottom, float top, int dtype) {
  const float masked = -largest_of(dtype == kFloat16 ? kFloat16 : kBFloat16);
  return top > masked ? fmaxf(bottom, nextafterf(masked, 0)) : bottom;
}

// A survivor's x / t. Where the type cannot hold it, the largest number that it can: an infinity would be a NaN in the next softmax.
FD_FN float divided(float x, float t, float largest) {
  const float y = x / t;
  if (fabsf(y) <= largest || fabsf(x) == INFINITY || x != x) return y;
  return y < 0 ? -largest : largest;
}

// Of a type of 16 bits.
FD_FN float from_half(uint16_t h, int dtype) { return dtype == kFloat16 ? from_f16(h) : from_bf16(h); }

FD_FN float load_as_float(const void* base, int dtype, int64_t i) {
  if (dtype == kFloat32) return static_cast<const float*>(base)[i];
  return from_half(static_cast<const uint16_t*>(base)[i], dtype);
}

FD_FN void store_from_float(void* base, int dtype, int64_t i, float x) {
  if (dtype == kFloat32)
    static_cast<float*>(base)[i] = x;
  else
    static_cast<uint16_t*>(base)[i] = dtype == kFloat16 ? to_f16(x) : to_bf16(x);
}

}  // namespace fastdecode
