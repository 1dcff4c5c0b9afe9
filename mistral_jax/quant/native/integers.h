// Vectors of 8-bit codes, and the one instruction that integer products are made of: to each 32-bit lane of a sum, the
// products of four unsigned codes with four signed activations are added.
//
// All sums are exact, and each lane belongs to one output. So results have the same bits on all processors that
// compute `fused` in one step.

#pragma once

#include <cstdint>
#include <cstring>

#include "blocks.h"
#include "vectors.h"

namespace {

#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
constexpr int kWidth = 64;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
constexpr int kWidth = 32;
#else
constexpr int kWidth = 16;
#endif

typedef uint8_t Codes __attribute__((vector_size(kWidth)));
typedef uint16_t CodeWords __attribute__((vector_size(kWidth)));
typedef int32_t Ints __attribute__((vector_size(kWidth)));
typedef float Floats __attribute__((vector_size(kWidth)));
constexpr int kOutputs = kWidth / 4;  // lanes of sums

template <typename V>
inline V load_as(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Shifts the bits that `mask` keeps; those of neighbouring bytes are masked off.
inline Codes right(Codes v, int by, uint8_t mask) {
  return reinterpret_cast<Codes>(reinterpret_cast<CodeWords>(v) >> by) & mask;
}
inline Codes left(Codes v, int by, uint8_t mask) {
  return reinterpret_cast<Codes>(reinterpret_cast<CodeWords>(v) << by) & mask;
}

inline Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

#if defined(__AVX512BW__) && defined(__AVX512VNNI__)

constexpr bool kAnyCode = true;  // whether `dot` takes codes above 127 without a detour

inline Ints same(int32_t value) { return reinterpret_cast<Ints>(_mm512_set1_epi32(value)); }
inline Floats same(float value) { return _mm512_set1_ps(value); }
template <bool kLarge>
inline Ints dot(Ints sum, Codes codes, const int8_t* four) {
  int32_t value;
  std::memcpy(&value, four, 4);
  return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(codes),
                                                    _mm512_set1_epi32(value)));
}
inline Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats halves(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Floats small(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Codes looked_up(const uint8_t* table, Codes index) {
  const __m512i entries = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return reinterpret_cast<Codes>(_mm512_shuffle_epi8(entries, reinterpret_cast<__m512i>(index)));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

inline Ints same(int32_t value) { return reinterpret_cast<Ints>(_mm256_set1_epi32(value)); }
inline Floats same(float value) { return _mm256_set1_ps(value); }

#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))

constexpr bool kAnyCode = true;

template <bool kLarge>
inline Ints dot(Ints sum, Codes codes, const int8_t* four) {
  int32_t value;
  std::memcpy(&value, four, 4);
  const __m256i s = reinterpret_cast<__m256i>(sum), c = reinterpret_cast<__m256i>(codes);
#if defined(__AVXVNNI__)
  return reinterpret_cast<Ints>(_mm256_dpbusd_avx_epi32(s, c, _mm256_set1_epi32(value)));
#else
  return reinterpret_cast<Ints>(_mm256_dpbusd_epi32(s, c, _mm256_set1_epi32(value)));
#endif
}

#else

constexpr bool kAnyCode = false;

// Pairs of products are added in 16 bits: up to 2 * 128 * 127, so codes above 128 are added in two steps.
template <bool kLarge>
inline Ints dot(Ints sum, Codes codes, const int8_t* four) {
  int32_t value;
  std::memcpy(&value, four, 4);
  const __m256i ones = _mm256_set1_epi16(1), x = _mm256_set1_epi32(value);
  const auto added = [&](Ints to, Codes some) {
    const __m256i pairs = _mm256_maddubs_epi16(reinterpret_cast<__m256i>(some), x);
    return to + reinterpret_cast<Ints>(_mm256_madd_epi16(pairs, ones));
  };
  if (!kLarge) return added(sum, codes);
  return added(added(sum, codes & uint8_t{127}), codes & uint8_t{128});
}

#endif

inline Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats halves(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Floats small(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Codes looked_up(const uint8_t* table, Codes index) {
  const __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return reinterpret_cast<Codes>(_mm256_shuffle_epi8(entries, reinterpret_cast<__m256i>(index)));
}

#else

inline Ints same(int32_t value) { return Ints{value, value, value, value}; }
inline Floats same(float value) { return Floats{value, value, value, value}; }

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)

constexpr bool kAnyCode = false;

// This instruction takes codes as signed: the highest bit counts -128 instead of 128, so it is taken off again.
template <bool kLarge>
inline Ints dot(Ints sum, Codes codes, const int8_t* four) {
  int32_t value;
  std::memcpy(&value, four, 4);
  const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(value));
  const auto product = [&](int32x4_t to, Codes some) {
    return vdotq_s32(to, vreinterpretq_s8_u8(reinterpret_cast<uint8x16_t>(some)), x);
  };
  const int32x4_t from = reinterpret_cast<int32x4_t>(sum);
  if (!kLarge) return reinterpret_cast<Ints>(product(from, codes));
  const int32x4_t high = product(vdupq_n_s32(0), codes & uint8_t{128});
  return reinterpret_cast<Ints>(vsubq_s32(product(from, codes & uint8_t{127}), high));
}

#else

constexpr bool kAnyCode = true;

template <bool kLarge>
inline Ints dot(Ints sum, Codes codes, const int8_t* four) {
  for (int lane = 0; lane < 4; ++lane)
    for (int i = 0; i < 4; ++i) sum[lane] += static_cast<int32_t>(codes[4 * lane + i]) * four[i];
  return sum;
}

#endif

#if defined(__aarch64__)
inline Floats fused(Floats a, Floats b, Floats c) {
  return reinterpret_cast<Floats>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a),
                                            reinterpret_cast<float32x4_t>(b)));
}
#else
inline Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }
#endif

inline Floats halves(const uint8_t* p) { return Floats{half_at(p), half_at(p + 2), half_at(p + 4), half_at(p + 6)}; }
inline Floats small(const uint8_t* p) {
  Floats v;
  for (int i = 0; i < 4; ++i) v[i] = static_cast<float>(static_cast<int8_t>(p[i]));
  return v;
}
inline Codes looked_up(const uint8_t* table, Codes index) {
  return reinterpret_cast<Codes>(picked(load_as<Bytes16>(table), reinterpret_cast<Bytes16>(index)));
}

#endif

}  // namespace
