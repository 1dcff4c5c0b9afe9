// Products with weights that stay packed in ggml blocks, and unpacking them, for XLA's CPU backend.
//
// A few rows of weights at a time are unpacked to small integers and scales in the first-level cache. They are
// converted to float32 in registers and multiplied by up to eight rows of activations; only packed bytes are read from
// memory. Each output is summed in a fixed order for any number of rows and threads, so its bits depend only on its own
// row of activations and its own row of weights.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "blocks.h"
#include "calls.h"
#include "vectors.h"

namespace {

// ---- The product ---------------------------------------------------------------------------------------------------

constexpr int kMaxRows = kRegisters / 4;  // rows of activations that are multiplied together
constexpr int kBlock = 16;                // rows of weights multiplied by a chunk of activations while it is cached
constexpr int kAhead = 8;                 // distance of prefetching, in rows of weights
constexpr int kMaxTile = 4;

// Rows of weights multiplied together: as many as there are registers for sums. Sums of a single row would form one
// chain of dependent additions.
constexpr int tile(int rows) { return rows * 8 <= kRegisters ? kMaxTile : 2; }

// Adds the products of kRows rows of activations with tile(kRows) rows of weights over `columns` columns. Activations
// are interleaved: kLanes columns of each row, then the next kLanes columns of each row. kWhole: Q8_0, whose blocks
// need no unpacking.
template <int kRows, int kGroup, bool kMinimum, bool kWhole = false>
void multiply(const float* x, const Chunk* chunks, int64_t columns, Vec* sums) {
  constexpr int kTile = tile(kRows);
  Vec sum[kRows][kTile];
  for (int r = 0; r < kRows; ++r)
    for (int t = 0; t < kTile; ++t) sum[r][t] = sums[r * kTile + t];
  int64_t c = 0;
  do {
    Vec scale[kTile], minimum[kTile];
    for (int t = 0; t < kTile; ++t) {
      scale[t] = all(kWhole ? half_at(chunks[t].blocks + c / 32 * 34) : chunks[t].scale[c / kGroup]);
      if (kMinimum) minimum[t] = all(chunks[t].minimum[c / kGroup]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; i += kLanes) {
      Vec w[kTile];
      for (int t = 0; t < kTile; ++t) {
        const auto whole = reinterpret_cast<const int8_t*>(chunks[t].blocks + c / 32 * 34 + 2);
        w[t] = scale[t] * to_float((kWhole ? whole : chunks[t].level + c) + i);
        if (kMinimum) w[t] = w[t] - minimum[t];
        KEEP_IN_REGISTER(w[t]);
      }
      for (int r = 0; r < kRows; ++r, x += kLanes) {
        Vec v = load(x);
        KEEP_IN_REGISTER(v);
        for (int t = 0; t < kTile; ++t) sum[r][t] = fma(v, w[t], sum[r][t]);
      }
    }
  } while ((c += kGroup) < columns);
  for (int r = 0; r < kRows; ++r)
    for (int t = 0; t < kTile; ++t) sums[r * kTile + t] = sum[r][t];
}

using Multiply = void (*)(const float* x, const Chunk* chunks, int64_t columns, Vec* sums);

template <int kRows>
Multiply multiply_for(const Format& f) {
  if (f.id == kQ8_0) return multiply<kRows, 32, false, true>;
  if (f.group == 16) return f.minimum ? multiply<kRows, 16, true> : multiply<kRows, 16, false>;
  return f.minimum ? multiply<kRows, 32, true> : multiply<kRows, 32, false>;
}

Multiply multiply_for(int rows, const Format& f) {
  switch (std::min(rows, kMaxRows)) {
    case 1: return multiply_for<1>(f);
    case 2: return multiply_for<2>(f);
    case 3: return multiply_for<3>(f);
    case 4: return multiply_for<4>(f);
    case 5: return multiply_for<5>(f);
    case 6: return multiply_for<6>(f);
    case 7: return multiply_for<7>(f);
    default: return multiply_for<kMaxRows>(f);
  }
}

// Reorders activations to the order in which `multiply` reads them, group by group.
void interleave(const float* x, Groups groups, int64_t columns, float* to) {
  for (int64_t g = 0; g < groups.count; ++g)
    for (int64_t c = 0; c < columns; c += kLanes)
      for (int64_t r = groups.begin(g); r < groups.begin(g + 1); ++r, to += kLanes)
        store(to, load(x + r * columns + c));
}

struct Product {
  const Format* format;
  const float* x;  // interleaved
  const uint8_t* raw;
  float* y;
  Groups groups;
  int64_t columns, outputs, row_bytes;

  // Outputs first … first + count - 1 of all rows, count <= kBlock.
  void block(int64_t first, int64_t count) const {
    // Few activations stay in the cache anyway; reading few rows of weights at a time uses memory better.
    const int64_t together = groups.rows <= 2 ? kMaxTile : kBlock;
    for (int64_t o = 0; o < count; o += together)
      for (int64_t g = 0; g < groups.count; ++g) group(first + o, std::min(together, count - o), g);
  }

  void group(int64_t first, int64_t count, int64_t g) const {
    const int64_t row = groups.begin(g), rows = groups.begin(g + 1) - row;
    const int size = tile(static_cast<int>(rows));
    const Multiply run = multiply_for(static_cast<int>(rows), *format);
    alignas(64) Vec sums[kBlock * kMaxRows];
    Chunk chunks[kMaxTile];
    std::memset(static_cast<void*>(sums), 0, rows * kBlock * sizeof(Vec));
    for (int64_t c = 0; c < columns; c += kChunk) {
      const int64_t width = std::min<int64_t>(kChunk, columns - c), bytes = width / format->size * format->bytes;
      for (int64_t o = 0; o < count; o += size) {
        for (int64_t t = 0; t < size; ++t) {
          const int64_t output = first + std::min(o + t, count - 1);  // the last output is repeated to fill its tile
          const uint8_t* blocks = raw + output * row_bytes + c / format->size * format->bytes;
          // Hardware prefetches one long stream better than many short ones.
          for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(blocks + kAhead * row_bytes + i);
          chunks[t].blocks = blocks;
          if (format->id != kQ8_0) format->take_apart(blocks, width, &chunks[t]);
        }
        run(x + row * columns + c * rows, chunks, width, sums + o * rows);
      }
    }
    for (int64_t o = 0; o < count; ++o)
      for (int64_t r = 0; r < rows; ++r)
        y[(row + r) * outputs + first + o] = sum_of_lanes(sums[o / size * size * rows + r * size + o % size]);
  }
};

// The format, if it is known and `row_bytes` bytes hold `columns` weights in whole blocks; else null.
const Format* find_format(int32_t id, int64_t columns, int64_t row_bytes) {
  for (const Format& f : kFormats)
    if (f.id == id) return columns % f.size == 0 && columns / f.size * f.bytes == row_bytes ? &f : nullptr;
  return nullptr;
}

ffi::Error matmul(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::U8> raw,
                  ffi::Result<ffi::Buffer<ffi::F32>> y, int32_t kind) {
  const auto xs = x.dimensions(), ws = raw.dimensions(), ys = y->dimensions();
  if (xs.size() != 2 || ws.size() != 2 || ys.size() != 2 || ys[0] != xs[0] || ys[1] != ws[0])
    return invalid("packed matmul takes x [rows, columns] and raw [outputs, bytes] and gives [rows, outputs]");
  const Format* format = find_format(kind, xs[1], ws[1]);
  if (!format) return invalid(mismatch(kind, xs[1], ws[1]));
  const int64_t rows = xs[0], columns = xs[1], outputs = ws[0], row_bytes = ws[1];
  if (rows == 0 || outputs == 0) return ffi::Error::Success();
  const int64_t piece = std::max<int64_t>(1, kPieceProducts / std::max<int64_t>(1, kBlock * rows * columns)) * kBlock;
  return guarded([&] {
    const Groups groups(rows, kMaxRows);
    struct Line {
      alignas(64) float values[16];
    };
    std::unique_ptr<Line[]> interleaved;  // aligned, so that no vector crosses a cache line
    const float* activations = x.typed_data();
    if (rows > 1) {
      interleaved.reset(new Line[(rows * columns + 15) / 16]);
      interleave(activations, groups, columns, interleaved[0].values);
      activations = interleaved[0].values;
    }
    const Product product{format, activations, raw.typed_data(), y->typed_data(), groups, columns, outputs, row_bytes};
    share(pool, (outputs + piece - 1) / piece, [product, piece](int64_t i) {
      const int64_t end = std::min(product.outputs, (i + 1) * piece);
      for (int64_t o = i * piece; o < end; o += kBlock) product.block(o, std::min<int64_t>(kBlock, end - o));
    });
  });
}

// ---- Unpacking -----------------------------------------------------------------------------------------------------

constexpr int64_t kPieceWeights = 1 << 16;

// Rounds to nearest, ties to even; NaN stays NaN.
inline void to_bfloat16(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 64;
    to[i] = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
}

ffi::Error dequantize(ffi::ThreadPool pool, ffi::Buffer<ffi::U8> raw, ffi::Buffer<ffi::S32> first,
                      ffi::Result<ffi::AnyBuffer> out, int32_t kind) {
  const auto ws = raw.dimensions(), os = out->dimensions();
  const bool wide = out->element_type() == ffi::F32;
  if (!wide && out->element_type() != ffi::BF16) return invalid("weights are unpacked to float32 or bfloat16");
  if (ws.size() != 2 || os.size() != 2 || first.element_count() != 1)
    return invalid("unpacking takes [rows, bytes] and the first row's number, and gives [rows, columns]");
  const int64_t rows = os[0], columns = os[1], row_bytes = ws[1], begin = first.typed_data()[0];
  const Format* format = find_format(kind, columns, row_bytes);
  if (!format) return invalid(mismatch(kind, columns, row_bytes));
  if (begin < 0 || begin + rows > ws[0])
    return invalid("no rows " + std::to_string(begin) + " to " + std::to_string(begin + rows) + " among " +
                   std::to_string(ws[0]));
  if (rows == 0 || columns == 0) return ffi::Error::Success();
  const uint8_t* from = raw.typed_data() + begin * row_bytes;
  void* to = out->untyped_data();
  const int64_t piece = std::max<int64_t>(1, kPieceWeights / columns);
  return guarded([&] {
    share(pool, (rows + piece - 1) / piece, [=](int64_t i) {
      for (int64_t r = i * piece; r < std::min(rows, (i + 1) * piece); ++r) {
        const uint8_t* blocks = from + r * row_bytes;
        if (wide) {
          format->unpack(blocks, columns, static_cast<float*>(to) + r * columns);
          continue;
        }
        alignas(64) float weights[kChunk];
        for (int64_t c = 0; c < columns; c += kChunk) {
          const int64_t width = std::min<int64_t>(kChunk, columns - c);
          format->unpack(blocks + c / format->size * format->bytes, width, weights);
          to_bfloat16(weights, width, static_cast<uint16_t*>(to) + r * columns + c);
        }
      }
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(PackedMatmul, matmul, product_binding());

XLA_FFI_DEFINE_HANDLER_SYMBOL(PackedDequantize, dequantize,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int32_t>("kind"));
