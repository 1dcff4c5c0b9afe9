// Packed weights in an order that suits integer products: sixteen rows interleaved.
//
// A tile is sixteen rows of weights; what products read of it is one run of memory. It is a row of units of 256
// columns, or of 32 columns for types with blocks of 32. A unit holds
//
//     codes of 32 columns after the other, in vectors of 64 bytes: 4 columns of each of the 16 rows. Vector j of eight
//     has the columns 4 j to 4 j + 3. Eight vectors are cut into planes of 4, 2 and 1 bits and stored in half, a
//     quarter or an eighth of the bytes:  4 bits: j and j + 4 share a vector;  2 bits: j, j + 2, j + 4, j + 6;  1 bit: all
//     blocks of 32: scales, and minimums if there are any, as sixteen half floats each
//     blocks of 256: scales of each group as sixteen bytes, then minimums, then the factors of both as half floats
//
// Codes are unsigned: what a code stands for is code - zero, or a number from a table. Nothing is rounded.

#pragma once

#include <cstdint>
#include <cstring>

#include "blocks.h"
#include "integers.h"

namespace {

constexpr int kRowsOfTile = 16;
constexpr int kCell = 32;    // columns whose codes are unpacked together
constexpr int kVectors = 8;  // of a cell
constexpr int kVector = 64;  // bytes

struct CodeTable {
  uint8_t code[16];
  bool large;  // some are above 127
};

// The entries of a table of levels as unsigned codes. Without a table codes of `bits` bits stand for themselves.
constexpr CodeTable codes_of(const int8_t* levels, int zero, int bits) {
  CodeTable table{{}, levels == nullptr && bits == 8};
  for (int i = 0; levels != nullptr && i < 16; ++i) {
    table.code[i] = static_cast<uint8_t>(levels[i] + zero);
    table.large = table.large || table.code[i] > 127;
  }
  return table;
}

// Scale codes and factors of one block, as they are stored.
struct Fields {
  alignas(16) int8_t scale[32];  // sixteen scales, sixteen minimums
  uint16_t factor[2];            // half floats; of MXFP4 the upper half of a float32
};

// What differs between types. `block` and `fields` are of one block of the file; minimums are subtracted.
template <int kBitsOfCode, int kColumnsOfGroup, int kColumnsOfUnit, bool kHasMinimum, int kZeroCode,
          const int8_t* kTableOfLevels, int kBytesOfBlock, void (*kLevels)(const uint8_t*, int8_t*),
          void (*kFields)(const uint8_t*, Fields*)>
struct Type {
  static constexpr int kBits = kBitsOfCode, kGroup = kColumnsOfGroup, kUnit = kColumnsOfUnit, kZero = kZeroCode;
  static constexpr bool kMinimum = kHasMinimum, kSuper = kUnit == 256;
  static constexpr CodeTable kTable = codes_of(kTableOfLevels, kZero, kBits);
  static constexpr bool kLarge = kTable.large, kHasTable = kTableOfLevels != nullptr;
  static constexpr int kBlockBytes = kBytesOfBlock, kCells = kUnit / kCell, kGroups = kUnit / kGroup;
  static constexpr int kCodeBytes = kCells * kBits * kVector;
  static constexpr int kScaleBytes = kSuper ? kGroups * kRowsOfTile : 0;
  static constexpr int kParts = kMinimum ? 2 : 1;
  static constexpr auto read_levels = kLevels;
  static constexpr auto read_fields = kFields;
  static constexpr int kUnitBytes = kCodeBytes + kParts * (kScaleBytes + 2 * kRowsOfTile);

  // The codes of one cell, the outputs from `first` on: kOutputs of each of the eight vectors.
  static inline void codes(const uint8_t* cell, int first, Codes* out) {
    cell += 4 * first;
    const auto vector = [&](int v) { return load_as<Codes>(cell + v * kVector); };
    if constexpr (kBits == 8) {
      for (int j = 0; j < 8; ++j) out[j] = vector(j);
      return;
    }
    if constexpr (kBits >= 4) {
      for (int j = 0; j < 4; ++j) {
        const Codes both = vector(j);
        out[j] = both & uint8_t{15}, out[j + 4] = right(both, 4, 15);
      }
    }
    if constexpr (kBits == 2 || kBits == 3 || kBits == 6) {
      constexpr int kFirst = kBits == 6 ? 4 : 0, kShift = kBits == 6 ? 4 : 0;
      for (int v = 0; v < 2; ++v) {
        const Codes four = vector(kFirst + v);
        for (int t = 0; t < 4; ++t) {
          const Codes part = 2 * t >= kShift ? right(four, 2 * t - kShift, 3 << kShift)
                                             : left(four, kShift - 2 * t, 3 << kShift);
          out[v + 2 * t] = kBits == 6 ? out[v + 2 * t] | part : part;
        }
      }
    }
    if constexpr (kBits == 3 || kBits == 5) {
      constexpr int kShift = kBits - 1;
      const Codes eight = vector(kBits - 1);
      for (int t = 0; t < 8; ++t)
        out[t] |= t >= kShift ? right(eight, t - kShift, 1 << kShift) : left(eight, kShift - t, 1 << kShift);
    }
    if constexpr (kHasTable)
      for (int j = 0; j < 8; ++j) out[j] = looked_up(kTable.code, out[j]);
  }

  // Factors of scales or of minimums of a unit; of types without super-scales the scales themselves.
  static inline Floats factor(const uint8_t* unit, int part, int first) {
    const uint8_t* at = unit + kUnitBytes + (part - kParts) * 2 * kRowsOfTile + 2 * first;
    if constexpr (kBlockBytes == 17) {  // MXFP4
      Ints wide;
      for (int i = 0; i < kOutputs; ++i) wide[i] = static_cast<int32_t>(read<uint16_t>(at + 2 * i)) << 16;
      return reinterpret_cast<Floats>(wide);
    }
    return halves(at);
  }

  static inline Floats scale(const uint8_t* unit, Floats factor, int part, int group, int first) {
    if constexpr (!kSuper) return factor;
    return factor * small(unit + kCodeBytes + part * kScaleBytes + group * kRowsOfTile + first);
  }
};

template <int kSize, int kGroup, void (*kBlock)(const uint8_t*, int8_t*, float*, float*)>
void levels_of(const uint8_t* b, int8_t* level) {
  float scale[kSize / 16 + 8], minimum[kSize / 16 + 8];
  kBlock(b, level, scale, minimum);
}

// Entries of a table, by number.
template <int kBlocks, int kAt>
void numbers_of(const uint8_t* b, int8_t* level) {
  for (int s = 0; s < kBlocks; ++s) put_nibbles(b + kAt + 16 * s, 0, level + 32 * s);
}

inline void half_scale(const uint8_t* b, Fields* to) { to->factor[0] = read<uint16_t>(b); }
inline void half_scale_and_minimum(const uint8_t* b, Fields* to) {
  to->factor[0] = read<uint16_t>(b);
  to->factor[1] = read<uint16_t>(b + 2) ^ 0x8000;  // these files hold what is added
}
inline void power_of_two(const uint8_t* b, Fields* to) {
  int8_t level[32];
  uint32_t bits;
  float scale;
  mxfp4(b, level, &scale, nullptr);
  std::memcpy(&bits, &scale, 4);
  to->factor[0] = static_cast<uint16_t>(bits >> 16);
}
template <void (*kScales)(const uint8_t*, int8_t*), int kScaleAt, int kMinimumAt>
void super_scales(const uint8_t* b, Fields* to) {
  kScales(b, to->scale);
  to->factor[0] = read<uint16_t>(b + kScaleAt), to->factor[1] = read<uint16_t>(b + kMinimumAt);
}
inline void q6_k_scales(const uint8_t* b, int8_t* packed) { std::memcpy(packed, b + 192, 16); }

using Q4_0 = Type<4, 32, 32, false, 8, nullptr, 18, levels_of<32, 32, q4_0>, half_scale>;
using Q4_1 = Type<4, 32, 32, true, 0, nullptr, 20, levels_of<32, 32, q4_1>, half_scale_and_minimum>;
using Q5_0 = Type<5, 32, 32, false, 16, nullptr, 22, levels_of<32, 32, q5_0>, half_scale>;
using Q5_1 = Type<5, 32, 32, true, 0, nullptr, 24, levels_of<32, 32, q5_1>, half_scale_and_minimum>;
using Q8_0 = Type<8, 32, 32, false, 128, nullptr, 34, levels_of<32, 32, q8_0>, half_scale>;
using IQ4_NL = Type<4, 32, 32, false, 128, kIQ4, 18, numbers_of<1, 2>, half_scale>;
using MXFP4 = Type<4, 32, 32, false, 12, kE2M1Doubled, 17, numbers_of<1, 1>, power_of_two>;
using Q2_K = Type<2, 16, 256, true, 0, nullptr, 84, levels_of<256, 16, q2_k>, super_scales<q2_k_scales, 80, 82>>;
using Q3_K = Type<3, 16, 256, false, 4, nullptr, 110, levels_of<256, 16, q3_k>, super_scales<q3_k_scales, 108, 108>>;
using Q4_K = Type<4, 32, 256, true, 0, nullptr, 144, levels_of<256, 32, q4_k>, super_scales<six_bit_scales, 0, 2>>;
using Q5_K = Type<5, 32, 256, true, 0, nullptr, 176, levels_of<256, 32, q5_k>, super_scales<six_bit_scales, 0, 2>>;
using Q6_K = Type<6, 16, 256, false, 32, nullptr, 210, levels_of<256, 16, q6_k>, super_scales<q6_k_scales, 208, 208>>;
using IQ4_XS = Type<4, 32, 256, false, 128, kIQ4, 136, numbers_of<8, 8>, super_scales<iq4_xs_scales, 0, 0>>;

// The bits kShift to kShift + kBits - 1 of codes, packed.
template <int kBits, int kShift>
void pack_plane(const uint8_t (*code)[kVector], uint8_t* to) {
  for (int v = 0; v < kBits; ++v)
    for (int i = 0; i < kVector; ++i) {
      int byte = 0;
      for (int t = 0; t < 8 / kBits; ++t)
        byte |= (code[v + t * kBits][i] >> kShift & ((1 << kBits) - 1)) << kBits * t;
      to[v * kVector + i] = static_cast<uint8_t>(byte);
    }
}

// Eight vectors of a cell, one code in each byte, packed into planes.
template <int kBits>
void pack(const uint8_t (*code)[kVector], uint8_t* to) {
  if constexpr (kBits == 8) pack_plane<8, 0>(code, to);
  if constexpr (kBits >= 4 && kBits < 8) pack_plane<4, 0>(code, to);
  if constexpr (kBits == 2 || kBits == 3) pack_plane<2, 0>(code, to);
  if constexpr (kBits == 6) pack_plane<2, 4>(code, to + 4 * kVector);
  if constexpr (kBits == 3 || kBits == 5) pack_plane<1, kBits - 1>(code, to + (kBits - 1) * kVector);
}

// Writes one tile. Rows that the matrix does not have, if `count` is less than sixteen, are zeros.
template <typename T>
void interleave_tile(const uint8_t* raw, int64_t row_bytes, int64_t count, int64_t units, uint8_t* to) {
  alignas(64) uint8_t code[T::kUnit / 4][kVector];
  std::memset(to, 0, units * T::kUnitBytes);
  std::memset(code, 0, sizeof code);
  for (int64_t u = 0; u < units; ++u, to += T::kUnitBytes) {
    uint8_t *scales = to + T::kCodeBytes, *factors = to + T::kUnitBytes - T::kParts * 2 * kRowsOfTile;
    for (int64_t o = 0; o < count; ++o) {
      const uint8_t* block = raw + o * row_bytes + u * T::kBlockBytes;
      alignas(32) int8_t level[T::kUnit];
      T::read_levels(block, level);
      if (!T::kHasTable)
        for (int c = 0; c < T::kUnit; ++c) level[c] = static_cast<int8_t>(level[c] + T::kZero);
      for (int v = 0; v < T::kUnit / 4; ++v) std::memcpy(code[v] + 4 * o, level + 4 * v, 4);
      Fields fields;
      T::read_fields(block, &fields);
      for (int part = 0; part < T::kParts; ++part) {
        if (T::kSuper)
          for (int g = 0; g < T::kGroups; ++g)
            scales[part * T::kScaleBytes + g * kRowsOfTile + o] = static_cast<uint8_t>(fields.scale[16 * part + g]);
        std::memcpy(factors + (part * kRowsOfTile + o) * 2, &fields.factor[part], 2);
      }
    }
    for (int cell = 0; cell < T::kCells; ++cell)
      pack<T::kBits>(code + cell * kVectors, to + cell * T::kBits * kVector);
  }
}

}  // namespace
