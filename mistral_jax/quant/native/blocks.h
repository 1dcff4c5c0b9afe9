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

template <typename T>
inline T read(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

inline float half_at(const uint8_t* p) {
  const uint32_t half = read<uint16_t>(p);
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
  const auto v = read<Bytes16>(q);
  put(bits(v, 0, 4) - static_cast<uint8_t>(zero), level);
  put(bits(v, 4, 4) - static_cast<uint8_t>(zero), level + 16);
}

// The same with a fifth bit for each level, in 4 more bytes.
inline void put_five_bits(const uint8_t* q, const uint8_t* fifth, int zero, int8_t* level) {
  const auto v = read<Bytes16>(q), packed = reinterpret_cast<Bytes16>(Ints16{read<uint32_t>(fifth)});
  for (int half = 0; half < 2; ++half) {
    const auto here = static_cast<uint8_t>(2 * half), next = static_cast<uint8_t>(here + 1);
    const Bytes16 eights = {here, here, here, here, here, here, here, here, next, next, next, next, next, next, next, next};
    constexpr Bytes16 own = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const Bytes16 set = reinterpret_cast<Bytes16>((picked(packed, eights) & own) != 0) & 16;
    put((bits(v, 4 * half, 4) | set) - static_cast<uint8_t>(zero), level + 16 * half);
  }
}

// The same with entries of a table for levels.
inline void put_looked_up(const uint8_t* q, const int8_t* table, int8_t* level) {
  const auto v = read<Bytes16>(q), entries = read<Bytes16>(reinterpret_cast<const uint8_t*>(table));
  put(picked(entries, bits(v, 0, 4)), level);
  put(picked(entries, bits(v, 4, 4)), level + 16);
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
    const auto q = read<Bytes32>(b + 16 + 32 * half);
    for (int s = 0; s < 4; ++s) put(bits(q, 2 * s, 2), level + 128 * half + 32 * s);
  }
  alignas(32) int8_t packed[32];
  alignas(64) float scale[16], minimum[16];
  put(bits(read<Bytes16>(b), 0, 4), packed);
  put(bits(read<Bytes16>(b), 4, 4), packed + 16);
  scaled<16>(packed, half_at(b + 80), scale);
  scaled<16>(packed + 16, half_at(b + 82), minimum);
  for (int s = 0; s < 16; ++s) scaled<16>(level + 16 * s, scale[s], minimum[s], out + 16 * s);
}

inline void q3_k(const uint8_t* b, float* out) {
  alignas(32) int8_t level[256];
  const auto third = read<Bytes32>(b);
  for (int half = 0; half < 2; ++half) {
    const auto q = read<Bytes32>(b + 32 + 32 * half);
    for (int s = 0; s < 4; ++s)
      put((bits(q, 2 * s, 2) | up(bits(third, 4 * half + s, 1), 2)) - 4, level + 128 * half + 32 * s);
  }
  // Sixteen scales of 6 bits: low halves in 8 bytes, upper quarters in 4.
  const uint64_t low = read<uint64_t>(b + 96), high = read<uint32_t>(b + 104);
  const Longs16 six = {
      (low & 0x0f0f0f0f0f0f0f0fu) | ((high | high << 30) & 0x0303030303030303u) << 4,
      (low >> 4 & 0x0f0f0f0f0f0f0f0fu) | ((high >> 4 | high << 26) & 0x0303030303030303u) << 4,
  };
  alignas(16) int8_t packed[16];
  alignas(64) float scale[16];
  put(reinterpret_cast<Bytes16>(six) - 32, packed);
  scaled<16>(packed, half_at(b + 108), scale);
  for (int s = 0; s < 16; ++s) scaled<16>(level + 16 * s, scale[s], out + 16 * s);
}

// What Q4_K and Q5_K share: eight scales and eight minimums of 6 bits each, in 12 bytes behind their factors.
inline void scaled_six_bits(const uint8_t* b, const int8_t* level, float* out) {
  const float d = half_at(b), dmin = half_at(b + 2);
  const uint8_t* packed = b + 4;
  for (int s = 0; s < 4; ++s) scaled<32>(level + 32 * s, d * (packed[s] & 63), dmin * (packed[s + 4] & 63), out + 32 * s);
  for (int s = 0; s < 4; ++s) {
    const int scale = (packed[s + 8] & 15) | packed[s] >> 6 << 4, minimum = packed[s + 8] >> 4 | packed[s + 4] >> 6 << 4;
    scaled<32>(level + 128 + 32 * s, d * scale, dmin * minimum, out + 128 + 32 * s);
  }
}

inline void q4_k(const uint8_t* b, float* out) {
  alignas(32) int8_t level[256];
  for (int pair = 0; pair < 4; ++pair) {
    const auto q = read<Bytes32>(b + 16 + 32 * pair);
    put(bits(q, 0, 4), level + 64 * pair);
    put(bits(q, 4, 4), level + 64 * pair + 32);
  }
  scaled_six_bits(b, level, out);
}

inline void q5_k(const uint8_t* b, float* out) {
  alignas(32) int8_t level[256];
  const auto fifth = read<Bytes32>(b + 16);
  for (int pair = 0; pair < 4; ++pair) {
    const auto q = read<Bytes32>(b + 48 + 32 * pair);
    put(bits(q, 0, 4) | up(bits(fifth, 2 * pair, 1), 4), level + 64 * pair);
    put(bits(q, 4, 4) | up(bits(fifth, 2 * pair + 1, 1), 4), level + 64 * pair + 32);
  }
  scaled_six_bits(b, level, out);
}

inline void q6_k(const uint8_t* b, float* out) {
  alignas(32) int8_t level[256];
  for (int half = 0; half < 2; ++half) {
    const auto high = read<Bytes32>(b + 128 + 32 * half);
    const Bytes32 low[2] = {read<Bytes32>(b + 64 * half), read<Bytes32>(b + 64 * half + 32)};
    for (int s = 0; s < 4; ++s)
      put((bits(low[s % 2], s / 2 * 4, 4) | up(bits(high, 2 * s, 2), 4)) - 32, level + 128 * half + 32 * s);
  }
  alignas(64) float scale[16];
  scaled<16>(reinterpret_cast<const int8_t*>(b + 192), half_at(b + 208), scale);
  for (int s = 0; s < 16; ++s) scaled<16>(level + 16 * s, scale[s], out + 16 * s);
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
