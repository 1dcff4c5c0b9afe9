// Unpacking ggml's blocks to float32.
//
// A block is taken apart into small integers, the levels, which are then scaled: weight = scale * level - minimum. The results
// have the bits of the gguf package's `gguf.quants`: compile with -ffp-contract=off. The layouts are those of ggml-common.h in
// llama.cpp.

#pragma once

#include <cstdint>
#include <cstring>

#include "vectors.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF blocks are little-endian"
#endif

namespace {

inline float half_at(const uint8_t* p) {
  const uint32_t half = p[0] | p[1] << 8;
#if defined(__F16C__)
  return _cvtsh_ss(static_cast<uint16_t>(half));
#else
  const uint32_t exponent = half >> 10 & 31, mantissa = half & 1023, sign = half >> 15 << 31;
  const uint32_t wide = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13;
  float value = static_cast<float>(mantissa) * 0x1p-24f;
  if (exponent == 0) return sign ? -value : value;
  std::memcpy(&value, &wide, 4);
  return value;
#endif
}

template <int kCount>
inline void scaled(const int8_t* level, float scale, float* out) {
  for (int i = 0; i < kCount; i += kLanes) store(out + i, all(scale) * to_float(level + i));
}

template <int kCount>
inline void scaled(const int8_t* level, float scale, float minimum, float* out) {
  for (int i = 0; i < kCount; i += kLanes) store(out + i, all(scale) * to_float(level + i) - all(minimum));
}

template <typename Bytes>
inline void put(Bytes v, int8_t* level) {
  std::memcpy(level, &v, sizeof v);
}

// 16 bytes hold 32 levels of 4 bits: the low halves come first.
inline void put_nibbles(const uint8_t* q, int zero, int8_t* level) {
  const auto v = bytes_at<Bytes16>(q);
  put(bits(v, 0, 4) - static_cast<uint8_t>(zero), level);
  put(bits(v, 4, 4) - static_cast<uint8_t>(zero), level + 16);
}

// The same with a fifth bit for each level, in 4 more bytes.
inline void put_five_bits(const uint8_t* q, const uint8_t* fifth, int zero, int8_t* level) {
  uint64_t eight[4];
  for (int i = 0; i < 4; ++i) {
    // The byte in each of eight lanes, of which each keeps its own bit; a carry moves it to the lane's bit 7.
    const uint64_t own = fifth[i] * 0x0101010101010101u & 0x8040201008040201u;
    eight[i] = ((own + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u) >> 3;
  }
  Bytes16 high[2];
  std::memcpy(high, eight, 32);
  const auto v = bytes_at<Bytes16>(q);
  put((bits(v, 0, 4) | high[0]) - static_cast<uint8_t>(zero), level);
  put((bits(v, 4, 4) | high[1]) - static_cast<uint8_t>(zero), level + 16);
}

// The same with entries of a table for levels.
inline void put_looked_up(const uint8_t* q, const int8_t* table, int8_t* level) {
  const auto v = bytes_at<Bytes16>(q);
  const Bytes16 nibbles[2] = {bits(v, 0, 4), bits(v, 4, 4)};
  for (int i = 0; i < 2; ++i) {
#if defined(__SSSE3__)
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    put(_mm_shuffle_epi8(entries, reinterpret_cast<__m128i>(nibbles[i])), level + 16 * i);
#elif defined(__aarch64__)
    put(vqtbl1q_s8(vld1q_s8(table), nibbles[i]), level + 16 * i);
#else
    for (int j = 0; j < 16; ++j) level[16 * i + j] = table[nibbles[i][j]];
#endif
  }
}

constexpr int8_t kIQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kE2M1Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

inline void q8_0(const uint8_t* b, float* out) { scaled<32>(reinterpret_cast<const int8_t*>(b + 2), half_at(b), out); }

inline void q4_0(const uint8_t* b, float* out) {
  alignas(32) int8_t level[32];
  put_nibbles(b + 2, 8, level);
  scaled<32>(level, half_at(b), out);
}

inline void q4_1(const uint8_t* b, float* out) {
  alignas(32) int8_t level[32];
  put_nibbles(b + 4, 0, level);
  scaled<32>(level, half_at(b), -half_at(b + 2), out);
}

inline void q5_0(const uint8_t* b, float* out) {
  alignas(32) int8_t level[32];
  put_five_bits(b + 6, b + 2, 16, level);
  scaled<32>(level, half_at(b), out);
}

inline void q5_1(const uint8_t* b, float* out) {
  alignas(32) int8_t level[32];
  put_five_bits(b + 8, b + 4, 0, level);
  scaled<32>(level, half_at(b), -half_at(b + 2), out);
}

inline void iq4_nl(const uint8_t* b, float* out) {
  alignas(32) int8_t level[32];
  put_looked_up(b + 2, kIQ4, level);
  scaled<32>(level, half_at(b), out);
}

inline void mxfp4(const uint8_t* b, float* out) {
  // A power of two, halved since the table is doubled. The two smallest are below float32's normal numbers.
  const uint32_t power = b[0] < 2 ? 0x00200000u << b[0] : (b[0] - 1u) << 23;
  float scale;
  std::memcpy(&scale, &power, 4);
  alignas(32) int8_t level[32];
  put_looked_up(b + 1, kE2M1Doubled, level);
  scaled<32>(level, scale, out);
}

inline void q2_k(const uint8_t* b, float* out) {
  alignas(32) int8_t level[256];
  for (int half = 0; half < 2; ++half) {
    const auto q = bytes_at<Bytes32>(b + 16 + 32 * half);
    for (int s = 0; s < 4; ++s) put(bits(q, 2 * s, 2), level + 128 * half + 32 * s);
  }
  const float d = half_at(b + 80), dmin = half_at(b + 82);
  for (int s = 0; s < 16; ++s) scaled<16>(level + 16 * s, d * (b[s] & 15), dmin * (b[s] >> 4), out + 16 * s);
}

inline void q3_k(const uint8_t* b, float* out) {
  alignas(32) int8_t level[256];
  const auto third = bytes_at<Bytes32>(b);
  for (int half = 0; half < 2; ++half) {
    const auto q = bytes_at<Bytes32>(b + 32 + 32 * half);
    for (int s = 0; s < 4; ++s)
      put((bits(q, 2 * s, 2) | up(bits(third, 4 * half + s, 1), 2)) - 4, level + 128 * half + 32 * s);
  }
  const uint8_t* packed = b + 96;
  const float d = half_at(b + 108);
  for (int s = 0; s < 16; ++s) {
    const int low = packed[s % 8] >> 4 * (s / 8) & 15, high = packed[8 + s % 4] >> 2 * (s / 4) & 3;
    scaled<16>(level + 16 * s, d * static_cast<float>((low | high << 4) - 32), out + 16 * s);
  }
}

// What Q4_K and Q5_K share: eight scales and eight minimums of 6 bits each, in 12 bytes behind their factors.
inline void scaled_six_bits(const uint8_t* b, const int8_t* level, float* out) {
  const float d = half_at(b), dmin = half_at(b + 2);
  const uint8_t* packed = b + 4;
  for (int s = 0; s < 4; ++s) {
    scaled<32>(level + 32 * s, d * (packed[s] & 63), dmin * (packed[s + 4] & 63), out + 32 * s);
  }
  for (int s = 0; s < 4; ++s) {
    const int scale = (packed[s + 8] & 15) | packed[s] >> 6 << 4, minimum = packed[s + 8] >> 4 | packed[s + 4] >> 6 << 4;
    scaled<32>(level + 128 + 32 * s, d * scale, dmin * minimum, out + 128 + 32 * s);
  }
}

inline void q4_k(const uint8_t* b, float* out) {
  alignas(32) int8_t level[256];
  for (int pair = 0; pair < 4; ++pair) {
    const auto q = bytes_at<Bytes32>(b + 16 + 32 * pair);
    put(bits(q, 0, 4), level + 64 * pair);
    put(bits(q, 4, 4), level + 64 * pair + 32);
  }
  scaled_six_bits(b, level, out);
}

inline void q5_k(const uint8_t* b, float* out) {
  alignas(32) int8_t level[256];
  const auto fifth = bytes_at<Bytes32>(b + 16);
  for (int pair = 0; pair < 4; ++pair) {
    const auto q = bytes_at<Bytes32>(b + 48 + 32 * pair);
    put(bits(q, 0, 4) | up(bits(fifth, 2 * pair, 1), 4), level + 64 * pair);
    put(bits(q, 4, 4) | up(bits(fifth, 2 * pair + 1, 1), 4), level + 64 * pair + 32);
  }
  scaled_six_bits(b, level, out);
}

inline void q6_k(const uint8_t* b, float* out) {
  alignas(32) int8_t level[256];
  for (int half = 0; half < 2; ++half) {
    const auto high = bytes_at<Bytes32>(b + 128 + 32 * half);
    const Bytes32 low[2] = {bytes_at<Bytes32>(b + 64 * half), bytes_at<Bytes32>(b + 64 * half + 32)};
    for (int s = 0; s < 4; ++s)
      put((bits(low[s % 2], s / 2 * 4, 4) | up(bits(high, 2 * s, 2), 4)) - 32, level + 128 * half + 32 * s);
  }
  const float d = half_at(b + 208);
  const int8_t* scale = reinterpret_cast<const int8_t*>(b + 192);
  for (int s = 0; s < 16; ++s) scaled<16>(level + 16 * s, d * scale[s], out + 16 * s);
}

inline void iq4_xs(const uint8_t* b, float* out) {
  const float d = half_at(b);
  const int high = b[2] | b[3] << 8;
  for (int s = 0; s < 8; ++s) {
    alignas(32) int8_t level[32];
    put_looked_up(b + 8 + 16 * s, kIQ4, level);
    const int scale = (b[4 + s / 2] >> 4 * (s % 2) & 15) | (high >> 2 * s & 3) << 4;
    scaled<32>(level, d * static_cast<float>(scale - 32), out + 32 * s);
  }
}

template <int kSize, int kBytes, void (*kBlock)(const uint8_t*, float*)>
void unpack_blocks(const uint8_t* blocks, int64_t columns, float* out) {
  for (int64_t c = 0; c < columns; c += kSize, blocks += kBytes) kBlock(blocks, out + c);
}

// A type of blocks; `columns` are whole blocks.
struct Format {
  int32_t id;  // as in GGUF files
  int32_t size, bytes;
  void (*unpack)(const uint8_t* blocks, int64_t columns, float* out);
};

template <int kSize, int kBytes, void (*kBlock)(const uint8_t*, float*)>
constexpr Format format(int32_t id) {
  return {id, kSize, kBytes, unpack_blocks<kSize, kBytes, kBlock>};
}

constexpr Format kFormats[] = {
    format<32, 18, q4_0>(2),    format<32, 20, q4_1>(3),     format<32, 22, q5_0>(6),    format<32, 24, q5_1>(7),
    format<32, 34, q8_0>(8),    format<256, 84, q2_k>(10),   format<256, 110, q3_k>(11), format<256, 144, q4_k>(12),
    format<256, 176, q5_k>(13), format<256, 210, q6_k>(14),  format<32, 18, iq4_nl>(20), format<256, 136, iq4_xs>(23),
    format<32, 17, mxfp4>(39),
};

}  // namespace
