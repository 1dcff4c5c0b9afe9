// Integer products with interleaved packed weights, and interleaving them, for XLA's CPU backend.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "calls.h"
#include "integer_product.h"

namespace {

constexpr int64_t kGroupsAtOnce = 16;  // their activations stay in the second-level cache

const Interleaved* find_interleaved(int32_t id) {
  for (const Interleaved& type : kInterleaved)
    if (type.id == id) return &type;
  return nullptr;
}

struct IntegerProduct {
  const Interleaved* type;
  const float* x;
  const uint8_t* raw;
  float* y;
  Groups groups;
  int64_t columns, outputs;
  int64_t places;  // of rows, if they are few
  int8_t* values;
  float* scales;
  int32_t* sums;

  int64_t cells() const { return columns / kCell; }
  int64_t groups_of_cell() const { return kCell / type->group; }

  // Rounds the activations of a group.
  void round(int64_t g) const {
    const int64_t begin = groups.begin(g), rows = groups.begin(g + 1) - begin;
    for (int64_t cell = 0; cell < cells(); ++cell)
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = begin * cells() + cell * (groups.count == 1 ? places : rows) + r;
        round_cell(x + (begin + r) * columns + cell * kCell, type->group, type->zero, type->minimum,
                   values + at * kCell, scales + at, sums + at * groups_of_cell());
      }
  }

  Rounded rounded(int64_t row, int64_t rows, int64_t first_cell) const {
    const int64_t at = row * cells() + first_cell * rows;
    return {values + at * kCell, scales + at, sums + at * groups_of_cell()};
  }

  void tiles(int64_t begin, int64_t end) const {
    const int64_t units = columns / type->unit, tile_bytes = units * type->unit_bytes;
    alignas(64) float found[kGroupsAtOnce * kMostRows][kRowsOfTile];
    for (int64_t first = 0; first < groups.count; first += kGroupsAtOnce) {
      const int64_t last = std::min(groups.count, first + kGroupsAtOnce);
      for (int64_t t = begin; t < end; ++t) {
        const uint8_t* tile = raw + t * tile_bytes;
        if (groups.rows <= kFewRows)
          type->multiply_few(places)(rounded(0, places, 0), tile, units, found);
        else
          several(tile, first, last, found);
        const int64_t row = groups.begin(first), count = std::min<int64_t>(kRowsOfTile, outputs - t * kRowsOfTile);
        for (int64_t r = row; r < groups.begin(last); ++r)
          std::memcpy(y + r * outputs + t * kRowsOfTile, found[r - row], count * sizeof(float));
      }
    }
  }

  void several(const uint8_t* tile, int64_t first, int64_t last, float (*found)[kRowsOfTile]) const {
    Unpacked weights;
    std::memset(found, 0, (groups.begin(last) - groups.begin(first)) * sizeof found[0]);
    for (int64_t cell = 0; cell < cells(); cell += kCellsAtOnce) {
      const int64_t count = std::min<int64_t>(kCellsAtOnce, cells() - cell);
      type->unpack_cells(tile, cell, count, &weights);
      for (int64_t g = first; g < last; ++g) {
        const int64_t row = groups.begin(g), rows = groups.begin(g + 1) - row;
        type->multiply_rows(rows)(rounded(row, rows, cell), weights, count, found + row - groups.begin(first));
      }
    }
  }
};

ffi::Error integer_matmul(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::U8> raw,
                          ffi::Result<ffi::Buffer<ffi::F32>> y, int32_t kind) {
  const auto xs = x.dimensions(), ws = raw.dimensions(), ys = y->dimensions();
  if (xs.size() != 2 || ws.size() != 2 || ys.size() != 2 || ys[0] != xs[0] ||
      ws[0] != (ys[1] + kRowsOfTile - 1) / kRowsOfTile)
    return invalid("integer matmul takes x [rows, columns] and tiles [outputs / 16, bytes] and gives [rows, outputs]");
  const Interleaved* type = find_interleaved(kind);
  const int64_t rows = xs[0], columns = xs[1], outputs = ys[1];
  if (!type || columns % type->unit || columns / type->unit * type->unit_bytes != ws[1])
    return invalid(mismatch(kind, columns, ws[1]));
  if (rows == 0 || outputs == 0) return ffi::Error::Success();
  return guarded([&] {
    const Groups groups(rows, kMostRows);
    const int64_t cells = columns / kCell, places = rows <= kFewRows ? few(rows) : rows;
    const auto values = std::make_unique<int8_t[]>(places * columns);
    const auto scales = std::make_unique<float[]>(places * cells);
    const auto sums = std::make_unique<int32_t[]>(places * cells * kCell / type->group);
    const IntegerProduct product{type,    x.typed_data(), raw.typed_data(), y->typed_data(), groups,      columns,
                                 outputs, places,         values.get(),     scales.get(),    sums.get()};
    share(pool, groups.count, [product](int64_t g) { product.round(g); });
    const int64_t piece = std::max<int64_t>(1, kPieceProducts / std::max<int64_t>(1, kRowsOfTile * rows * columns));
    const int64_t tiles = ws[0];
    share(pool, (tiles + piece - 1) / piece,
          [product, piece, tiles](int64_t i) { product.tiles(i * piece, std::min(tiles, (i + 1) * piece)); });
  });
}

ffi::Error interleave_rows(ffi::ThreadPool pool, ffi::Buffer<ffi::U8> raw, ffi::Result<ffi::Buffer<ffi::U8>> tiles,
                      int32_t kind) {
  const auto ws = raw.dimensions(), ts = tiles->dimensions();
  if (ws.size() != 2 || ts.size() != 2 || ts[0] != (ws[0] + kRowsOfTile - 1) / kRowsOfTile)
    return invalid("interleaving takes [rows, bytes] and gives [rows / 16, bytes]");
  const Interleaved* type = find_interleaved(kind);
  const int64_t units = type ? ts[1] / type->unit_bytes : 0;
  if (!type || units * type->unit_bytes != ts[1] || units * type->block_bytes != ws[1])
    return invalid("rows of " + std::to_string(ws[1]) + " bytes of ggml type " + std::to_string(kind) +
                   " have no tiles of " + std::to_string(ts[1]) + " bytes");
  const uint8_t* from = raw.typed_data();
  uint8_t* to = tiles->typed_data();
  const int64_t rows = ws[0], row_bytes = ws[1], tile_bytes = ts[1];
  return guarded([&] {
    share(pool, ts[0], [=](int64_t t) {
      const int64_t first = t * kRowsOfTile, count = std::min<int64_t>(kRowsOfTile, rows - first);
      type->interleave_tile(from + first * row_bytes, row_bytes, count, units, to + t * tile_bytes);
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(IntegerMatmul, integer_matmul, product_binding());

XLA_FFI_DEFINE_HANDLER_SYMBOL(InterleaveRows, interleave_rows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Ret<ffi::Buffer<ffi::U8>>()
                                  .Attr<int32_t>("kind"));
