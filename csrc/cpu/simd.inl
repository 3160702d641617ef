// The vector of floats that the CPU kernels are written in, for one instruction set.
//
// Files named .inl are compiled once for each instruction set, by target_baseline.cpp, target_avx2.cpp and target_avx512.cpp: each
// defines FD_TARGET, the namespace that keeps its code apart from the others', and is compiled with the flags of its set. So
// `#pragma once` admits an .inl file once for each set. A file named .h is compiled once and means the same everywhere.
//
// Arithmetic and comparisons are the compiler's vector extensions (gcc and clang, x86 and Arm alike); only what they
// cannot say is spelled in intrinsics here. No other file in csrc/ knows an instruction set. Names are those of Google's highway.
#pragma once

#ifndef FD_TARGET
#define FD_TARGET \
  target_opened_alone  // by an editor, which has no target file before its eyes: see csrc/compile_flags.txt
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "../dtype.h"

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

typedef uint64_t W __attribute__((vector_size(4 * kLanes)));  // and these

typedef int16_t H __attribute__((vector_size(4 * kLanes)));  // twice as many lanes
typedef uint16_t UH __attribute__((vector_size(4 * kLanes)));

FD_FN H load_halves(const uint16_t* at) {
  H x;
  memcpy(&x, at, sizeof x);
  return x;
}
FD_FN V load(const float* at) {
  V x;
  memcpy(&x, at, sizeof x);
  return x;
}
FD_FN void store(float* at, V x) { memcpy(at, &x, sizeof x); }
FD_FN V broadcast(float x) { return V{} + x; }

// x, in a register. Where a loaded vector has several uses, gcc loads it again for each, and the pass is bound by loads.
FD_FN V in_register(V x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__SSE2__)
  asm("" : "+x"(x));
#elif defined(__ARM_NEON)
  asm("" : "+w"(x));
#endif
  return x;
}

// The larger lanes; b where either is a NaN. (gcc makes two instructions of the plain expression.)
FD_FN V max_of(V a, V b) {
#if defined(__AVX512F__)
  return V(_mm512_max_ps(__m512(a), __m512(b)));
#elif defined(__AVX2__)
  return V(_mm256_max_ps(__m256(a), __m256(b)));
#elif defined(__SSE2__)
  return V(_mm_max_ps(__m128(a), __m128(b)));
#else
  return a > b ? a : b;
#endif
}

// The result of a comparison in each lane: a mask register where the set has them, else a vector of 0 and -1.
#if defined(__AVX512F__)
typedef __mmask16 M;
FD_FN M at_least(V a, V b) { return _mm512_cmp_ps_mask(__m512(a), __m512(b), _CMP_GE_OQ); }
FD_FN M less(V a, V b) { return _mm512_cmp_ps_mask(__m512(a), __m512(b), _CMP_LT_OQ); }
FD_FN M both(M a, M b) { return M(a & b); }
FD_FN M either(M a, M b) { return M(a | b); }
FD_FN M and_not(M a, M b) { return M(a & ~b); }
FD_FN V select(M mask, V yes, V no) { return V(_mm512_mask_blend_ps(mask, __m512(no), __m512(yes))); }
FD_FN V select_or_zero(M mask, V x) { return V(_mm512_maskz_mov_ps(mask, __m512(x))); }
FD_FN V add_where(M mask, V to, V x) { return V(_mm512_mask_add_ps(__m512(to), mask, __m512(to), __m512(x))); }
FD_FN I count_where(M mask, I n) {
  return I(_mm512_mask_add_epi32(__m512i(n), mask, __m512i(n), _mm512_set1_epi32(1)));
}
FD_FN uint32_t bits_of(M mask) { return mask; }
#else
typedef I M;
FD_FN M at_least(V a, V b) { return I(a >= b); }
FD_FN M less(V a, V b) { return I(a < b); }
FD_FN M both(M a, M b) { return a & b; }
FD_FN M either(M a, M b) { return a | b; }
FD_FN M and_not(M a, M b) {
#if defined(__AVX2__)  // without the intrinsic, gcc compares again with operands swapped
  return M(_mm256_andnot_ps(__m256(b), __m256(a)));
#else
  return a & ~b;
#endif
}
FD_FN V select(M mask, V yes, V no) {
#if defined(__AVX2__)
  return V(_mm256_blendv_ps(__m256(no), __m256(yes), __m256(mask)));
#else
  return V((I(yes) & mask) | (I(no) & ~mask));
#endif
}
FD_FN V select_or_zero(M mask, V x) { return V(I(x) & mask); }
FD_FN V add_where(M mask, V to, V x) { return to + select_or_zero(mask, x); }
FD_FN I count_where(M mask, I n) { return n - mask; }  // one more in each lane of the mask
// One bit for each lane.
FD_FN uint32_t bits_of(M mask) {
#if defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps(__m256(mask)));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_ps(__m128(mask)));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= uint32_t(mask[lane] & 1) << lane;
  return bits;
#endif
}
#endif

FD_FN float reduce_max(V x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(__m512(x));
#elif defined(__AVX2__)
  __m128 max = _mm_max_ps(_mm256_castps256_ps128(__m256(x)), _mm256_extractf128_ps(__m256(x), 1));
  max = _mm_max_ps(max, _mm_movehl_ps(max, max));
  return _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
#else
  float best = x[0];
  for (int lane = 1; lane < kLanes; ++lane) best = x[lane] > best ? x[lane] : best;
  return best;
#endif
}

FD_FN uint16_t reduce_min(UH x) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256i part = _mm256_min_epu16(_mm512_castsi512_si256(__m512i(x)), _mm512_extracti64x4_epi64(__m512i(x), 1));
#else
  const __m256i part = __m256i(x);
#endif
  const __m128i eight = _mm_min_epu16(_mm256_castsi256_si128(part), _mm256_extracti128_si256(part, 1));
  return uint16_t(_mm_cvtsi128_si32(_mm_minpos_epu16(eight)));
#else
  uint16_t least = x[0];
  for (int lane = 1; lane < 2 * kLanes; ++lane) least = x[lane] < least ? x[lane] : least;
  return least;
#endif
}

// By the minimum of reversed numbers: 0x7fff becomes 0, 0x8000 becomes 0xffff.
FD_FN int16_t reduce_max(H x) { return int16_t(reduce_min(UH(x) ^ 0x7fff) ^ 0x7fff); }
FD_FN uint16_t reduce_max(UH x) { return uint16_t(~reduce_min(~x)); }

// The lanes in double, pairwise added: half as many lanes, in an order that depends on the instruction set alone.
FD_FN D pairs_of(V x) {
#if defined(__AVX512F__)
  return D(_mm512_cvtps_pd(_mm512_castps512_ps256(__m512(x))) + _mm512_cvtps_pd(_mm512_extractf32x8_ps(__m512(x), 1)));
#elif defined(__AVX2__)
  return D(_mm256_cvtps_pd(_mm256_castps256_ps128(__m256(x))) + _mm256_cvtps_pd(_mm256_extractf128_ps(__m256(x), 1)));
#else
  return D{double(x[0]) + double(x[2]), double(x[1]) + double(x[3])};
#endif
}

FD_FN int64_t reduce_sum(I x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32(__m512i(x));
#else
  int64_t sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += x[lane];
  return sum;
#endif
}

// Counts the set lanes of masks that come K at a time.
struct Count {
#if defined(__AVX512F__)
  int64_t n = 0;
  template <int K>
  inline __attribute__((always_inline)) void add(const M* masks) {
    static_assert(K == 4, "four masks fill a register");
    const __mmask32 low = _mm512_kunpackw(masks[0], masks[1]), high = _mm512_kunpackw(masks[2], masks[3]);
    n += __builtin_popcountll(_mm512_kunpackd(low, high));
  }
  int64_t total() const { return n; }
#else
  I lanes{};
  template <int K>
  inline __attribute__((always_inline)) void add(const M* masks) {
    for (int k = 0; k < K; ++k) lanes -= masks[k];
  }
  int64_t total() const { return reduce_sum(lanes); }
#endif
};

FD_FN double reduce_sum(D x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_pd(__m512d(x));
#else
  double sum = x[0];
  for (int lane = 1; lane < kLanes / 2; ++lane) sum += x[lane];
  return sum;
#endif
}

// a b + c, rounded once where there is an instruction for it.
FD_FN V mul_add(V a, V b, V c) {
#if defined(__AVX512F__)
  return V(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
#elif defined(__AVX2__)
  return V(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#else
  return a * b + c;
#endif
}

// The 64-bit products of the lower 32 bits of each lane.
FD_FN W mul_even(W a, W b) {
#if defined(__AVX512F__)
  return W(_mm512_mul_epu32(__m512i(a), __m512i(b)));
#elif defined(__AVX2__)
  return W(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#elif defined(__SSE2__)
  return W(_mm_mul_epu32(__m128i(a), __m128i(b)));
#else
  return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

FD_FN V iota() {
  V lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = float(lane);
  return lanes;
}

// first, first + 1, ...
FD_FN I iota_from(int32_t first) {
  I lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  return lanes + first;
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each set of lanes, their numbers in order, a byte each.
struct PackedLanes {
  alignas(64) uint64_t of[256];
  constexpr PackedLanes() : of{} {
    for (int bits = 0; bits < 256; ++bits)
      for (int lane = 0, n = 0; lane < 8; ++lane)
        if (bits >> lane & 1) of[bits] |= uint64_t(lane) << 8 * n++;
  }
};
static constexpr PackedLanes kPackedLanes;
#endif

// Stores the lanes whose bits are set, in order, at `to`: floats or ids. May write kLanes entries whatever `bits` is.
FD_FN void compress_store(V x, uint32_t bits, void* to) {
#if defined(__AVX512F__)
  // Compressing in a register and storing all of it: the compressing store is an order of magnitude slower on Zen 4.
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(__mmask16(bits), __m512(x)));
#elif defined(__AVX2__)
  const __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPackedLanes.of + bits)));
  _mm256_storeu_ps(static_cast<float*>(to), _mm256_permutevar8x32_ps(__m256(x), lanes));
#else
  float lanes[kLanes];
  store(lanes, x);
  for (char* at = static_cast<char*>(to); bits; bits &= bits - 1, at += 4) memcpy(at, &lanes[__builtin_ctz(bits)], 4);
#endif
}

// A bit for each lane of K masks, in order.
template <int K>
FD_FN void store_bits(const M* masks, uint8_t* at) {
  if (kLanes >= 8) {
    for (int k = 0; k < K; ++k) {
      const uint32_t bits = bits_of(masks[k]);
      memcpy(at + k * kLanes / 8, &bits, kLanes / 8);
    }
  } else {
    for (int k = 0; k < K; k += 2) at[k / 2] = uint8_t(bits_of(masks[k]) | bits_of(masks[k + 1]) << 4);
  }
}

// kLanes logits of 16 bits as floats, exactly.
FD_FN V load_bf16(const uint16_t* at) {
#if defined(__AVX512F__)
  // To the upper halves of the lanes in one instruction.
  alignas(64) static constexpr uint16_t kPlaces[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                                       0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
  const __m512i halves = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  return V(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, _mm512_load_si512(kPlaces), halves));
#elif defined(__AVX2__)
  return V(U(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)))) << 16);
#else
  typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
  Halves h;
  memcpy(&h, at, sizeof h);
  return V(__builtin_convertvector(h, U) << 16);
#endif
}

// 2 kLanes of them, those at even places first, then those at odd ones: one instruction less for each.
FD_FN void load_bf16_by_parity(const uint16_t* at, V* two) {
  const U both = U(load_halves(at));
  two[0] = V(both << 16), two[1] = V(both & 0xffff0000u);
}

// And back, rounded once to nearest even. NaNs must be quiet, as NAN is: rounding carries other NaNs over into the sign.
FD_FN void store_bf16_by_parity(uint16_t* at, const V* two) {
  auto rounded = [](V x) { return U(x) + 0x7fff + (U(x) >> 16 & 1); };
  const U both = rounded(two[0]) >> 16 | (rounded(two[1]) & 0xffff0000u);
  memcpy(at, &both, sizeof both);
}

// From even and odd places to the first and the second half.
FD_FN void interleave(V* two) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512 even = __m512(two[0]), odd = __m512(two[1]);
  two[0] = V(_mm512_permutex2var_ps(even, low, odd));
  two[1] = V(_mm512_permutex2var_ps(even, _mm512_add_epi32(low, _mm512_set1_epi32(8)), odd));
#elif defined(__AVX2__)
  const __m256 low = _mm256_unpacklo_ps(__m256(two[0]), __m256(two[1]));
  const __m256 high = _mm256_unpackhi_ps(__m256(two[0]), __m256(two[1]));
  two[0] = V(_mm256_permute2f128_ps(low, high, 0x20)), two[1] = V(_mm256_permute2f128_ps(low, high, 0x31));
#else
  float lanes[2 * kLanes];
  for (int i = 0; i < 2 * kLanes; ++i) lanes[i] = two[i % 2][i / 2];
  two[0] = load(lanes), two[1] = load(lanes + kLanes);
#endif
}

FD_FN float value_of_f16(uint16_t half) {
#if defined(__F16C__)
  return _cvtsh_ss(half);
#else
  return from_f16(half);
#endif
}

FD_FN V load_f16(const uint16_t* at) {
#if defined(__AVX512F__)
  return V(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))));
#elif defined(__F16C__)
  return V(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
#else
  typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
  Halves h;
  memcpy(&h, at, sizeof h);
  const U wide = __builtin_convertvector(h, U);  // from_f16 of dtype.h, lane by lane
  const V scaled = V((wide & 0x7fff) << 13) * 0x1p112f;
  const U special = U((wide & 0x7c00) == 0x7c00) & 0x7f800000;
  return V(U(scaled) | special | (wide & 0x8000) << 16);
#endif
}

// And back, rounded once to nearest even.
FD_FN void store_f16(uint16_t* at, V x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtps_ph(__m512(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_cvtps_ph(__m256(x), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int lane = 0; lane < kLanes; ++lane) at[lane] = to_f16(x[lane]);
#endif
}

}  // namespace FD_TARGET
}  // namespace fastdecode
