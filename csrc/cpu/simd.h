// The vector of floats that the CPU kernels are written in, for one instruction set: the including file was compiled with the
// flags of that set, and FD_TARGET names the namespace that keeps its code apart from the others'.
//
// Arithmetic and comparisons are the compiler's vector extensions (gcc and clang, x86 and Arm alike); only what they
// cannot say is spelled in intrinsics here. Nothing else in csrc/ knows an instruction set.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "dtype.h"

namespace fastdecode {
namespace FD_TARGET {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float V __attribute__((vector_size(4 * kLanes)));
typedef int32_t I __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U __attribute__((vector_size(4 * kLanes)));
typedef double D __attribute__((vector_size(4 * kLanes)));  // half as many lanes

FD_FN V load(const float* at) {
  V x;
  memcpy(&x, at, sizeof x);
  return x;
}
FD_FN void store(float* at, V x) { memcpy(at, &x, sizeof x); }
FD_FN V all(float x) { return V{} + x; }
FD_FN V max_of(V a, V b) { return a > b ? a : b; }  // b where either is a NaN
FD_FN V min_of(V a, V b) { return a < b ? a : b; }

// One bit for each lane in which the comparison, a vector of 0 and -1, is true.
FD_FN uint32_t bits_of(I mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(__m512i(mask));
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps(__m256(mask)));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_ps(__m128(mask)));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= uint32_t(mask[lane] & 1) << lane;
  return bits;
#endif
}

FD_FN float largest_lane(V x) {
  float best = x[0];
  for (int lane = 1; lane < kLanes; ++lane) best = x[lane] > best ? x[lane] : best;
  return best;
}

FD_FN double sum_of_lanes(V x) {
#if defined(__AVX512F__)
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(__m512(x)));
  const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(__m512(x), 1));
  return _mm512_reduce_add_pd(low + high);
#else
  double sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += double(x[lane]);
  return sum;
#endif
}

// 2^y for y <= 0, to 2 parts in 10^7; below 2^-125 it stays there, which is nothing beside a sum that holds a 1.
FD_FN V exp2_of(V y) {
  const V magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, left in the low bits
  y = max_of(y, all(-125.0f));
  const V shifted = y + magic;
  const V f = y - (shifted - magic);  // [-0.5, 0.5]
  V p = all(1.3264727e-3f);           // a minimax fit of 2^f
  p = p * f + 9.6715130e-3f;
  p = p * f + 5.5507336e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.9314700e-1f;
  p = p * f + 1.0f;
  return V(I(p) + I(U(shifted) << 23));
}

// Appends the lanes named in `bits` to values[n..] and their ids, in order; returns the new n. Writes up to kLanes
// entries past n, so both arrays need that much room.
FD_FN int64_t append(V x, int32_t first_id, uint32_t bits, float* values, int32_t* ids, int64_t n) {
#if defined(__AVX512F__)
  // Compressing in a register and storing all of it: the compressing store is an order of magnitude slower on Zen 4.
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i id = _mm512_add_epi32(lane, _mm512_set1_epi32(first_id));
  _mm512_storeu_ps(values + n, _mm512_maskz_compress_ps(__mmask16(bits), __m512(x)));
  _mm512_storeu_si512(ids + n, _mm512_maskz_compress_epi32(__mmask16(bits), id));
  return n + __builtin_popcount(bits);
#else
  float lanes[kLanes];
  store(lanes, x);
  for (; bits; bits &= bits - 1) {
    const int lane = __builtin_ctz(bits);
    values[n] = lanes[lane];
    ids[n++] = first_id + lane;
  }
  return n;
#endif
}

// kLanes logits of 16 bits as floats, exactly.
FD_FN V load_bf16(const uint16_t* at) {
  typedef uint16_t H __attribute__((vector_size(2 * kLanes)));
  H h;
  memcpy(&h, at, sizeof h);
  return V(__builtin_convertvector(h, U) << 16);
}

FD_FN V load_f16(const uint16_t* at) {
#if defined(__AVX512F__)
  return V(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))));
#elif defined(__F16C__)
  return V(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
#else
  typedef uint16_t H __attribute__((vector_size(2 * kLanes)));
  H h;
  memcpy(&h, at, sizeof h);
  const U wide = __builtin_convertvector(h, U);  // from_f16 of dtype.h, lane by lane
  const V scaled = V((wide & 0x7fff) << 13) * 0x1p112f;
  const U special = U((wide & 0x7c00) == 0x7c00) & 0x7f800000;
  return V(U(scaled) | special | (wide & 0x8000) << 16);
#endif
}

}  // namespace FD_TARGET
}  // namespace fastdecode
