// Vectors of float32, as wide as on this processor, and vectors of bytes.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__SSSE3__)
#include <tmmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
using Vec = __m512;
constexpr int kRegisters = 32;
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec all(float value) { return _mm512_set1_ps(value); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec to_float(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
#elif defined(__AVX2__) && defined(__FMA__)
using Vec = __m256;
constexpr int kRegisters = 16;
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec all(float value) { return _mm256_set1_ps(value); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec to_float(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
#elif defined(__aarch64__)
using Vec = float32x4_t;
constexpr int kRegisters = 32;
inline Vec load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, Vec v) { vst1q_f32(p, v); }
inline Vec all(float value) { return vdupq_n_f32(value); }
inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
inline Vec to_float(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
#else
typedef float Vec __attribute__((vector_size(16)));
constexpr int kRegisters = 16;
inline Vec load(const float* p) { return Vec{p[0], p[1], p[2], p[3]}; }
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec all(float value) { return Vec{value, value, value, value}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec to_float(const int8_t* p) {
  return Vec{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}
#endif
constexpr int kLanes = sizeof(Vec) / sizeof(float);

// Vectors of bytes. There are no byte shifts: 16-bit shifts are used, and the bits of the neighbouring byte masked off.
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));
typedef uint16_t Words16 __attribute__((vector_size(16)));
typedef uint32_t Ints16 __attribute__((vector_size(16)));
typedef uint64_t Longs16 __attribute__((vector_size(16)));
typedef uint16_t Words32 __attribute__((vector_size(32)));

// `count` bits of each byte, from bit `first` on.
inline Bytes16 bits(Bytes16 v, int first, int count) {
  return reinterpret_cast<Bytes16>(reinterpret_cast<Words16>(v) >> first) & static_cast<uint8_t>((1 << count) - 1);
}
inline Bytes32 bits(Bytes32 v, int first, int count) {
  return reinterpret_cast<Bytes32>(reinterpret_cast<Words32>(v) >> first) & static_cast<uint8_t>((1 << count) - 1);
}
// Shifts each byte left; no bit may leave its byte.
inline Bytes32 up(Bytes32 v, int by) { return reinterpret_cast<Bytes32>(reinterpret_cast<Words32>(v) << by); }

// Without this GCC loads a vector again for each use.
#if defined(__x86_64__)
#define KEEP_IN_REGISTER(v) asm("" : "+v"(v))
#elif defined(__aarch64__)
#define KEEP_IN_REGISTER(v) asm("" : "+w"(v))
#else
#define KEEP_IN_REGISTER(v)
#endif

// Adds lanes in pairs, always in the same order.
inline float sum_of_lanes(Vec v) {
#if defined(__AVX512F__)
  const __m256 eight = _mm512_castps512_ps256(v) + _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
  const __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return two[0] + two[1];
#else
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
#endif
}

// Table lookup: table[number] for each byte; numbers are 0 to 15.
inline Bytes16 picked(Bytes16 table, Bytes16 number) {
#if defined(__SSSE3__)
  return reinterpret_cast<Bytes16>(
      _mm_shuffle_epi8(reinterpret_cast<__m128i>(table), reinterpret_cast<__m128i>(number)));
#elif defined(__aarch64__)
  return vqtbl1q_u8(table, number);
#else
  Bytes16 v;
  for (int i = 0; i < 16; ++i) v[i] = table[number[i]];
  return v;
#endif
}

}  // namespace
