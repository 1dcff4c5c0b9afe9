// Unpacking ggml's blocks to float32.
//
// A block is unpacked to small integers, the levels, which are then scaled: weight = scale * level - minimum. Results
// have the bits of the gguf package's `gguf.quants`: compile with -ffp-contract=off. The layouts are those of
// ggml-common.h in llama.cpp.

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

template <typename Bytes>
inline void put(Bytes v, int8_t* level) {
  std::memcpy(level, &v, sizeof v);
}

// 16 bytes hold 32 levels of 4 bits: first all low halves, then all high halves.
inline void put_nibbles(const uint8_t* q, int zero, int8_t* level) {
  const auto v = read<Bytes16>(q);
  put(bits(v, 0, 4) - static_cast<uint8_t>(zero), level);
  put(bits(v, 4, 4) - static_cast<uint8_t>(zero), level + 16);
}

// As put_nibbles, with a fifth bit for each level in 4 more bytes.
inline void put_five_bits(const uint8_t* q, const uint8_t* fifth, int zero, int8_t* level) {
  const auto v = read<Bytes16>(q), packed = reinterpret_cast<Bytes16>(Ints16{read<uint32_t>(fifth)});
  for (int half = 0; half < 2; ++half) {
    const auto here = static_cast<uint8_t>(2 * half), next = static_cast<uint8_t>(here + 1);
    const Bytes16 eights = {here, here, here, here, here, here, here, here,
                            next, next, next, next, next, next, next, next};
    constexpr Bytes16 own = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const Bytes16 set = reinterpret_cast<Bytes16>((picked(packed, eights) & own) != 0) & 16;
    put((bits(v, 4 * half, 4) | set) - static_cast<uint8_t>(zero), level + 16 * half);
  }
}

// As put_nibbles, with levels from a table.
inline void put_looked_up(const uint8_t* q, const int8_t* table, int8_t* level) {
  const auto v = read<Bytes16>(q), entries = read<Bytes16>(reinterpret_cast<const uint8_t*>(table));
  put(picked(entries, bits(v, 0, 4)), level);
  put(picked(entries, bits(v, 4, 4)), level + 16);
}

constexpr int8_t kIQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kE2M1Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Each of these unpacks one block: its levels, and a scale and for some types a minimum for every group of levels.

inline void q8_0(const uint8_t* b, int8_t* level, float* scale, float*) {
  put(read<Bytes32>(b + 2), level);
  *scale = half_at(b);
}

inline void q4_0(const uint8_t* b, int8_t* level, float* scale, float*) {
  put_nibbles(b + 2, 8, level);
  *scale = half_at(b);
}

inline void q4_1(const uint8_t* b, int8_t* level, float* scale, float* minimum) {
  put_nibbles(b + 4, 0, level);
  *scale = half_at(b), *minimum = -half_at(b + 2);
}

inline void q5_0(const uint8_t* b, int8_t* level, float* scale, float*) {
  put_five_bits(b + 6, b + 2, 16, level);
  *scale = half_at(b);
}

inline void q5_1(const uint8_t* b, int8_t* level, float* scale, float* minimum) {
  put_five_bits(b + 8, b + 4, 0, level);
  *scale = half_at(b), *minimum = -half_at(b + 2);
}

inline void iq4_nl(const uint8_t* b, int8_t* level, float* scale, float*) {
  put_looked_up(b + 2, kIQ4, level);
  *scale = half_at(b);
}

inline void mxfp4(const uint8_t* b, int8_t* level, float* scale, float*) {
  // A power of two, halved because the table is doubled. The two smallest are subnormal in float32.
  const uint32_t power = b[0] < 2 ? 0x00200000u << b[0] : (b[0] - 1u) << 23;
  put_looked_up(b + 1, kE2M1Doubled, level);
  std::memcpy(scale, &power, 4);
}

// Scales of a block of 256 as they are stored, whole numbers: up to sixteen, and then as many minimums.

inline void q2_k_scales(const uint8_t* b, int8_t* packed) {
  put(bits(read<Bytes16>(b), 0, 4), packed);
  put(bits(read<Bytes16>(b), 4, 4), packed + 16);
}

// Low halves in 8 bytes, upper quarters in 4.
inline void q3_k_scales(const uint8_t* b, int8_t* packed) {
  const uint64_t low = read<uint64_t>(b + 96), high = read<uint32_t>(b + 104);
  const Longs16 six = {
      (low & 0x0f0f0f0f0f0f0f0fu) | ((high | high << 30) & 0x0303030303030303u) << 4,
      (low >> 4 & 0x0f0f0f0f0f0f0f0fu) | ((high >> 4 | high << 26) & 0x0303030303030303u) << 4,
  };
  put(reinterpret_cast<Bytes16>(six) - 32, packed);
}

// Of Q4_K and Q5_K: eight scales and eight minimums of 6 bits each, in 12 bytes. Zeros follow both.
inline void six_bit_scales(const uint8_t* b, int8_t* packed) {
  const uint32_t first = read<uint32_t>(b + 4), second = read<uint32_t>(b + 8), third = read<uint32_t>(b + 12);
  const uint32_t m0 = second & 0x3f3f3f3fu, m1 = (third >> 4 & 0x0f0f0f0fu) | (second >> 6 & 0x03030303u) << 4;
  const uint32_t s0 = first & 0x3f3f3f3fu, s1 = (third & 0x0f0f0f0fu) | (first >> 6 & 0x03030303u) << 4;
  const Longs16 scales = {s0 | static_cast<uint64_t>(s1) << 32, 0};
  const Longs16 minimums = {m0 | static_cast<uint64_t>(m1) << 32, 0};
  put(scales, packed);
  put(minimums, packed + 16);
}

inline void iq4_xs_scales(const uint8_t* b, int8_t* packed) {
  const int high = b[2] | b[3] << 8;
  for (int s = 0; s < 8; ++s)
    packed[s] = static_cast<int8_t>(((b[4 + s / 2] >> 4 * (s % 2) & 15) | (high >> 2 * s & 3) << 4) - 32);
}

inline void q2_k(const uint8_t* b, int8_t* level, float* scale, float* minimum) {
  for (int half = 0; half < 2; ++half) {
    const auto q = read<Bytes32>(b + 16 + 32 * half);
    for (int s = 0; s < 4; ++s) put(bits(q, 2 * s, 2), level + 128 * half + 32 * s);
  }
  alignas(32) int8_t packed[32];
  q2_k_scales(b, packed);
  scaled<16>(packed, half_at(b + 80), scale);
  scaled<16>(packed + 16, half_at(b + 82), minimum);
}

inline void q3_k(const uint8_t* b, int8_t* level, float* scale, float*) {
  const auto third = read<Bytes32>(b);
  for (int half = 0; half < 2; ++half) {
    const auto q = read<Bytes32>(b + 32 + 32 * half);
    for (int s = 0; s < 4; ++s)
      put((bits(q, 2 * s, 2) | up(bits(third, 4 * half + s, 1), 2)) - 4, level + 128 * half + 32 * s);
  }
  alignas(16) int8_t packed[16];
  q3_k_scales(b, packed);
  scaled<16>(packed, half_at(b + 108), scale);
}

// Common to Q4_K and Q5_K. Writes sixteen numbers of each; the next block overwrites the last eight.
inline void scale_six_bits(const uint8_t* b, float* scale, float* minimum) {
  alignas(16) int8_t packed[32];
  six_bit_scales(b, packed);
  scaled<16>(packed, half_at(b), scale);
  scaled<16>(packed + 16, half_at(b + 2), minimum);
}

inline void q4_k(const uint8_t* b, int8_t* level, float* scale, float* minimum) {
  for (int pair = 0; pair < 4; ++pair) {
    const auto q = read<Bytes32>(b + 16 + 32 * pair);
    put(bits(q, 0, 4), level + 64 * pair);
    put(bits(q, 4, 4), level + 64 * pair + 32);
  }
  scale_six_bits(b, scale, minimum);
}

inline void q5_k(const uint8_t* b, int8_t* level, float* scale, float* minimum) {
  const auto fifth = read<Bytes32>(b + 16);
  for (int pair = 0; pair < 4; ++pair) {
    const auto q = read<Bytes32>(b + 48 + 32 * pair);
    put(bits(q, 0, 4) | up(bits(fifth, 2 * pair, 1), 4), level + 64 * pair);
    put(bits(q, 4, 4) | up(bits(fifth, 2 * pair + 1, 1), 4), level + 64 * pair + 32);
  }
  scale_six_bits(b, scale, minimum);
}

inline void q6_k(const uint8_t* b, int8_t* level, float* scale, float*) {
  for (int half = 0; half < 2; ++half) {
    const auto high = read<Bytes32>(b + 128 + 32 * half);
    const Bytes32 low[2] = {read<Bytes32>(b + 64 * half), read<Bytes32>(b + 64 * half + 32)};
    for (int s = 0; s < 4; ++s)
      put((bits(low[s % 2], s / 2 * 4, 4) | up(bits(high, 2 * s, 2), 4)) - 32, level + 128 * half + 32 * s);
  }
  scaled<16>(reinterpret_cast<const int8_t*>(b + 192), half_at(b + 208), scale);
}

inline void iq4_xs(const uint8_t* b, int8_t* level, float* scale, float*) {
  int8_t packed[8];
  iq4_xs_scales(b, packed);
  for (int s = 0; s < 8; ++s) {
    put_looked_up(b + 8 + 16 * s, kIQ4, level + 32 * s);
    scale[s] = half_at(b) * static_cast<float>(packed[s]);
  }
}

constexpr int kChunk = 512;  // columns unpacked at a time, a multiple of every block size

// At most kChunk columns of one row of weights, as levels: small enough for the first-level cache, and cheap to scale.
struct alignas(64) Chunk {
  const uint8_t* blocks;
  alignas(64) int8_t level[kChunk];
  float scale[kChunk / 16 + 8], minimum[kChunk / 16 + 8];  // per group; `scale_six_bits` writes beyond the last
};

// kLanes weights from column `column` on; kGroup of them share a scale. The product is rounded before the subtraction.
template <int kGroup, bool kMinimum>
inline Vec weights_at(const Chunk& chunk, int64_t column) {
  const Vec product = all(chunk.scale[column / kGroup]) * to_float(chunk.level + column);
  return kMinimum ? product - all(chunk.minimum[column / kGroup]) : product;
}

template <int kSize, int kBytes, int kGroup, void (*kBlock)(const uint8_t*, int8_t*, float*, float*)>
void take_apart(const uint8_t* blocks, int64_t columns, Chunk* chunk) {
  for (int64_t c = 0; c < columns; c += kSize, blocks += kBytes)
    kBlock(blocks, chunk->level + c, chunk->scale + c / kGroup, chunk->minimum + c / kGroup);
}

template <int kGroup, bool kMinimum>
void finish(const Chunk& chunk, int64_t columns, float* out) {
  for (int64_t c = 0; c < columns; c += kLanes) store(out + c, weights_at<kGroup, kMinimum>(chunk, c));
}

// A type of blocks.
struct Format {
  int32_t id;  // as in GGUF files
  int32_t size, bytes;
  int32_t group;  // weights that share a scale: 16 or 32
  bool minimum;   // whether they also share a minimum
  void (*take_apart)(const uint8_t* blocks, int64_t columns, Chunk* chunk);  // whole blocks
  void (*finish)(const Chunk& chunk, int64_t columns, float* out);

  // Unpacks `columns` weights of whole blocks to float32.
  void unpack(const uint8_t* blocks, int64_t columns, float* out) const {
    Chunk chunk;
    for (int64_t c = 0; c < columns; c += kChunk) {
      const int64_t width = columns - c < kChunk ? columns - c : kChunk;
      take_apart(blocks + c / size * bytes, width, &chunk);
      finish(chunk, width, out + c);
    }
  }
};

template <int kSize, int kBytes, int kGroup, bool kMinimum, void (*kBlock)(const uint8_t*, int8_t*, float*, float*)>
constexpr Format format(int32_t id) {
  return {id, kSize, kBytes, kGroup, kMinimum, take_apart<kSize, kBytes, kGroup, kBlock>, finish<kGroup, kMinimum>};
}

constexpr int32_t kQ8_0 = 8;

constexpr Format kFormats[] = {
    format<32, 18, 32, false, q4_0>(2),
    format<32, 20, 32, true, q4_1>(3),
    format<32, 22, 32, false, q5_0>(6),
    format<32, 24, 32, true, q5_1>(7),
    format<32, 34, 32, false, q8_0>(kQ8_0),
    format<256, 84, 16, true, q2_k>(10),
    format<256, 110, 16, false, q3_k>(11),
    format<256, 144, 32, true, q4_k>(12),
    format<256, 176, 32, true, q5_k>(13),
    format<256, 210, 16, false, q6_k>(14),
    format<32, 18, 32, false, iq4_nl>(20),
    format<256, 136, 32, false, iq4_xs>(23),
    format<32, 17, 32, false, mxfp4>(39),
};

}  // namespace
