// Products of activations, rounded to 8 bits in blocks of 32, with interleaved packed weights.
//
// An output is, over groups of 16 or 32 columns in their order,
//
//     sum = fused(whole sum of code * activation - zero * sum of activations, scale * activation scale, sum)
//     sum = fused(minimum, -(activation scale * sum of activations), sum)
//
// where everything whole is exact. So its bits depend only on its own row of activations and its own row of weights,
// and are the same for one row and for a thousand.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "integers.h"
#include "interleaved.h"

namespace {

constexpr int kPrefetch = 4096;  // bytes ahead
constexpr int kMostRows = kWidth == 32 ? 4 : 8;  // rows of activations that are multiplied together

// A few rows of activations, cell by cell; in each cell row by row.
struct Rounded {
  const int8_t* values;  // [cells, rows, 32]
  const float* scales;   // [cells, rows]
  // [cells, rows, groups of a cell]: -zero * sum of the group's activations, or, for types with minimums,
  // -(scale * sum) as a float.
  const int32_t* sums;
};

// Rounds 32 activations to nearest, ties to even. What is not finite makes all products with it NaN.
inline void round_cell(const float* x, int group, int zero, bool minimum, int8_t* values, float* scale, int32_t* sums) {
  uint32_t most = 0;
  for (int i = 0; i < kCell; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    most = std::max(most, bits & 0x7fffffffu);
  }
  float largest;
  std::memcpy(&largest, &most, 4);
  const bool finite = most < 0x7f800000u, any = largest > 1e-30f;
  *scale = !finite ? std::numeric_limits<float>::quiet_NaN() : any ? largest / 127 : 0;
  const float inverse = finite && any ? 127 / largest : 0;
  int32_t whole[kCell];
  for (int i = 0; i < kCell; ++i) {
    // Adding 1.5 * 2^23 leaves the rounded number in the lowest bits.
    const float moved = (finite ? x[i] : 0) * inverse + 12582912.0f;
    std::memcpy(whole + i, &moved, 4);
    whole[i] -= 0x4b400000;
  }
  for (int i = 0; i < kCell; ++i) values[i] = static_cast<int8_t>(whole[i]);
  for (int g = 0; g < kCell / group; ++g) {
    int32_t sum = 0;
    for (int i = 0; i < group; ++i) sum += whole[g * group + i];
    const float scaled = -(*scale * static_cast<float>(sum));
    if (minimum)
      std::memcpy(sums + g, &scaled, 4);
    else
      sums[g] = -zero * sum;
  }
}

template <bool kMinimum>
inline Ints first_sum(const int32_t* sums) {
  return same(kMinimum ? int32_t{0} : *sums);
}

template <bool kMinimum>
inline Floats less_minimum(Floats minimum, const int32_t* sums, Floats sum) {
  float scaled;
  std::memcpy(&scaled, sums, 4);
  return kMinimum ? fused(minimum, same(scaled), sum) : sum;
}

// Adds one group of columns to the sums of kRows rows: the one place where the order of all roundings is written down.
//
//   codes: codes(j) is vector j of the group's
//   values, scales, sums: of the cell that the group lies in, from its first row on; `sums` are of this group
template <int kRows, int kGroup, bool kMinimum, bool kLarge, typename CodesAt>
__attribute__((always_inline)) inline void add_group(CodesAt codes, Floats scale, Floats minimum, const int8_t* values,
                                                     const float* scales, const int32_t* sums, Floats* sum) {
  constexpr int kOfCell = kCell / kGroup;
  Ints whole[kRows];
  for (int r = 0; r < kRows; ++r) whole[r] = first_sum<kMinimum>(sums + r * kOfCell);
  // One row's products depend on each other, so those of all rows are mixed.
#pragma GCC unroll 8
  for (int j = 0; j < kVectors / kOfCell; ++j) {
    const Codes some = codes(j);
    for (int r = 0; r < kRows; ++r) whole[r] = dot<kLarge>(whole[r], some, values + r * kCell + 4 * j);
  }
  for (int r = 0; r < kRows; ++r) {
    sum[r] = fused(to_floats(whole[r]), scale * same(scales[r]), sum[r]);
    sum[r] = less_minimum<kMinimum>(minimum, sums + r * kOfCell, sum[r]);
  }
}

constexpr int kFewRows = kMostRows;

// How many rows few rows are filled up to. Decode steps have at least two rows.
inline int64_t few(int64_t rows) { return rows <= 2 ? 2 : rows <= 4 ? 4 : kFewRows; }

// Few rows of activations: codes are unpacked in registers, and only packed bytes are read.
template <typename T, int kRows>
void multiply_few(const Rounded& x, const uint8_t* tile, int64_t units, float (*y)[kRowsOfTile]) {
  constexpr int kOfCell = kCell / T::kGroup, kStep = kVectors / kOfCell;
  for (int first = 0; first < kRowsOfTile; first += kOutputs) {
    Floats sum[kRows] = {};
    const int8_t* values = x.values;
    const float* scales = x.scales;
    const int32_t* sums = x.sums;
    const uint8_t* unit = tile;
    for (int64_t u = 0; u < units; ++u, unit += T::kUnitBytes) {
      const Floats factor = T::factor(unit, 0, first), least = T::kMinimum ? T::factor(unit, 1, first) : Floats{};
      for (int cell = 0; cell < T::kCells; ++cell) {
        const uint8_t* packed = unit + cell * T::kBits * kVector;
        for (int v = 0; v < T::kBits; ++v) __builtin_prefetch(packed + kPrefetch + v * kVector);
        Codes codes[kVectors];
        T::codes(packed, first, codes);
        for (int g = 0; g < kOfCell; ++g) {
          const int group = cell * kOfCell + g;
          const Floats scale = T::scale(unit, factor, 0, group, first);
          const Floats minimum = T::kMinimum ? T::scale(unit, least, 1, group, first) : Floats{};
          add_group<kRows, T::kGroup, T::kMinimum, T::kLarge && !kAnyCode>(
              [&](int j) { return codes[g * kStep + j]; }, scale, minimum, values + 4 * g * kStep, scales, sums + g, sum);
        }
        values += kRows * kCell, scales += kRows, sums += kRows * kOfCell;
      }
    }
    for (int r = 0; r < kRows; ++r) std::memcpy(y[r] + first, &sum[r], sizeof sum[r]);
  }
}

using MultiplyFew = void (*)(const Rounded&, const uint8_t*, int64_t, float (*)[kRowsOfTile]);

template <typename T>
MultiplyFew multiply_few_for(int64_t rows) {
  switch (rows) {
    case 2: return multiply_few<T, 2>;
    case 4: return multiply_few<T, 4>;
    default: return multiply_few<T, kFewRows>;
  }
}

constexpr int kCellsAtOnce = 16;  // unpacked for several rows: 8 KiB of codes

struct Unpacked {
  alignas(64) uint8_t codes[kCellsAtOnce][kVectors][kVector];
  alignas(64) float scale[2 * kCellsAtOnce][kRowsOfTile], minimum[2 * kCellsAtOnce][kRowsOfTile];
};

template <typename T>
void unpack_cells(const uint8_t* tile, int64_t begin, int64_t count, Unpacked* to) {
  constexpr int kOfCell = kCell / T::kGroup;
  for (int64_t i = 0; i < count; ++i) {
    const int cell = static_cast<int>((begin + i) % T::kCells);
    const uint8_t* unit = tile + (begin + i) / T::kCells * T::kUnitBytes;
    for (int first = 0; first < kRowsOfTile; first += kOutputs) {
      Codes codes[kVectors];
      T::codes(unit + cell * T::kBits * kVector, first, codes);
      for (int j = 0; j < kVectors; ++j) std::memcpy(to->codes[i][j] + 4 * first, &codes[j], sizeof codes[j]);
      for (int part = 0; part < T::kParts; ++part) {
        const Floats factor = T::factor(unit, part, first);
        for (int g = 0; g < kOfCell; ++g) {
          const Floats scale = T::scale(unit, factor, part, cell * kOfCell + g, first);
          std::memcpy((part ? to->minimum : to->scale)[i * kOfCell + g] + first, &scale, sizeof scale);
        }
      }
    }
  }
}

template <int kRows, int kGroup, bool kMinimum, bool kLarge>
void multiply_rows(const Rounded& x, const Unpacked& weights, int64_t cells, float (*y)[kRowsOfTile]) {
  constexpr int kOfCell = kCell / kGroup, kStep = kVectors / kOfCell;
  for (int first = 0; first < kRowsOfTile; first += kOutputs) {
    Floats sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = load_as<Floats>(y[r] + first);
    const int8_t* values = x.values;
    const float* scales = x.scales;
    const int32_t* sums = x.sums;
    for (int64_t cell = 0; cell < cells; ++cell, values += kRows * kCell, scales += kRows, sums += kRows * kOfCell) {
      for (int g = 0; g < kOfCell; ++g) {
        const auto codes = [&](int j) { return load_as<Codes>(weights.codes[cell][g * kStep + j] + 4 * first); };
        const Floats scale = load_as<Floats>(weights.scale[cell * kOfCell + g] + first);
        Floats minimum{};
        if (kMinimum) minimum = load_as<Floats>(weights.minimum[cell * kOfCell + g] + first);
        add_group<kRows, kGroup, kMinimum, kLarge>(codes, scale, minimum, values + 4 * g * kStep, scales, sums + g, sum);
      }
    }
    for (int r = 0; r < kRows; ++r) std::memcpy(y[r] + first, &sum[r], sizeof sum[r]);
  }
}

using MultiplyRows = void (*)(const Rounded&, const Unpacked&, int64_t, float (*)[kRowsOfTile]);

// Groups of rows, if there are several, have at least half of the most rows.
template <int kRows, int kGroup, bool kMinimum, bool kLarge>
MultiplyRows multiply_rows_for(int64_t rows) {
  if constexpr (kRows > kMostRows / 2)
    if (rows < kRows) return multiply_rows_for<kRows - 1, kGroup, kMinimum, kLarge>(rows);
  return multiply_rows<kRows, kGroup, kMinimum, kLarge>;
}

// A type of blocks, in interleaved order.
struct Interleaved {
  int32_t id;  // as in GGUF files
  int unit, unit_bytes, block_bytes, group, zero;
  bool minimum;
  MultiplyFew (*multiply_few)(int64_t rows);
  void (*unpack_cells)(const uint8_t*, int64_t, int64_t, Unpacked*);
  MultiplyRows (*multiply_rows)(int64_t rows);
  void (*interleave_tile)(const uint8_t*, int64_t, int64_t, int64_t, uint8_t*);
};

template <typename T>
constexpr Interleaved interleaved(int32_t id) {
  return {id,
          T::kUnit,
          T::kUnitBytes,
          T::kBlockBytes,
          T::kGroup,
          T::kZero,
          T::kMinimum,
          multiply_few_for<T>,
          unpack_cells<T>,
          multiply_rows_for<kMostRows, T::kGroup, T::kMinimum, T::kLarge && !kAnyCode>,
          interleave_tile<T>};
}

constexpr Interleaved kInterleaved[] = {
    interleaved<Q4_0>(2),   interleaved<Q4_1>(3),  interleaved<Q5_0>(6),    interleaved<Q5_1>(7),  interleaved<Q8_0>(8),
    interleaved<Q2_K>(10),  interleaved<Q3_K>(11), interleaved<Q4_K>(12),   interleaved<Q5_K>(13), interleaved<Q6_K>(14),
    interleaved<IQ4_NL>(20), interleaved<IQ4_XS>(23), interleaved<MXFP4>(39),
};

}  // namespace
