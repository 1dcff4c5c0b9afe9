// Products with weights that stay packed in ggml blocks, and unpacking them, for XLA's CPU backend.
//
// A few rows of weights are unpacked at a time to float32 in the first-level cache, where every row of activations meets them;
// memory delivers only the packed bytes. Each output is summed up in one fixed order, whatever the number of rows and threads,
// so its bits depend on its own row of activations and its own row of weights alone.
//
// Unpacked weights have the bits of the gguf package's `gguf.quants` (compile with -ffp-contract=off), including its layouts:
// ggml-common.h of llama.cpp describes each block type.

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#include "xla/ffi/api/ffi.h"

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__SSSE3__)
#include <tmmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF blocks are little-endian"
#endif

namespace ffi = xla::ffi;

namespace {

// ---- Vectors of float32 -------------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
using Vec = __m512;
constexpr int kMaxRows = 6;  // 24 accumulators and 4 weights of 32 registers
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec all(float value) { return _mm512_set1_ps(value); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec to_float(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
#elif defined(__AVX2__) && defined(__FMA__)
using Vec = __m256;
constexpr int kMaxRows = 2;  // 8 accumulators and 4 weights of 16 registers
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec all(float value) { return _mm256_set1_ps(value); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec to_float(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
#elif defined(__aarch64__)
using Vec = float32x4_t;
constexpr int kMaxRows = 6;
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
constexpr int kMaxRows = 2;
inline Vec load(const float* p) { return Vec{p[0], p[1], p[2], p[3]}; }
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec all(float value) { return Vec{value, value, value, value}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec to_float(const int8_t* p) {
  return Vec{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}
#endif
constexpr int kLanes = sizeof(Vec) / sizeof(float);

// Vectors of bytes. Compilers know no shift of bytes: the neighbour's bits that come in with 16-bit shifts are masked off.
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));
typedef uint16_t Words16 __attribute__((vector_size(16)));
typedef uint16_t Words32 __attribute__((vector_size(32)));

template <typename Bytes>
inline Bytes bytes_at(const uint8_t* p) {
  Bytes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// `count` bits of each byte, from bit `first` on.
inline Bytes16 bits(Bytes16 v, int first, int count) {
  return reinterpret_cast<Bytes16>(reinterpret_cast<Words16>(v) >> first) & static_cast<uint8_t>((1 << count) - 1);
}
inline Bytes32 bits(Bytes32 v, int first, int count) {
  return reinterpret_cast<Bytes32>(reinterpret_cast<Words32>(v) >> first) & static_cast<uint8_t>((1 << count) - 1);
}
// Small numbers, moved up; no bit may leave its byte.
inline Bytes32 up(Bytes32 v, int by) { return reinterpret_cast<Bytes32>(reinterpret_cast<Words32>(v) << by); }

// GCC would load a vector again for each use of it.
#if defined(__x86_64__)
#define KEEP_IN_REGISTER(v) asm("" : "+v"(v))
#elif defined(__aarch64__)
#define KEEP_IN_REGISTER(v) asm("" : "+w"(v))
#else
#define KEEP_IN_REGISTER(v)
#endif

// Lanes are added in pairs, always in the same order.
inline float sum_of_lanes(Vec v) {
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

// ---- Unpacking blocks ---------------------------------------------------------------------------------------------------------
// A block is taken apart into small integers, the levels, which are then scaled: weight = scale * level - minimum.

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

constexpr int kChunk = 512;  // columns unpacked at a time, a multiple of every block size

// ---- Sharing work among threads -----------------------------------------------------------------------------------------------

// XLA sets its threads to flush numbers below the normal range to zero, but not necessarily the thread that calls: the bits of a
// result must not depend on which thread computes it.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
};

struct Job {
  int64_t count;
  std::function<void(int64_t)> work;
  std::atomic<int64_t> next{0}, finished{0};
  std::mutex mutex;
  std::condition_variable all_finished;

  bool done() const { return finished.load(std::memory_order_acquire) == count; }

  void take_part() {
    DefaultFloatingPoint environment;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      work(i);
      if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
        std::lock_guard<std::mutex> lock(mutex);
        all_finished.notify_all();
      }
    }
  }
};

// Calls work(0) … work(count - 1), on this thread and on those of the pool that are free. It waits for pieces that have begun,
// never for a thread to become free: all threads of the pool may be waiting here. Threads that come late find nothing left to
// do, maybe after this has returned; so they own a share of the job.
void share(ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> work) {
  const auto job = std::make_shared<Job>();
  job->count = count;
  job->work = std::move(work);
  const int64_t others = std::min(pool.num_threads(), count) - 1;
  try {
    for (int64_t i = 0; i < others; ++i) pool.Schedule([job] { job->take_part(); });
  } catch (const std::bad_alloc&) {
    // Those that have been asked, and this thread, do it.
  }
  job->take_part();
  for (int spin = 0; spin < 1000 && !job->done(); ++spin) {
  }
  if (!job->done()) {
    std::unique_lock<std::mutex> lock(job->mutex);
    job->all_finished.wait(lock, [&] { return job->done(); });
  }
}

// ---- The product --------------------------------------------------------------------------------------------------------------

constexpr int kTile = 4;    // rows of weights unpacked together
constexpr int kPanel = 64;  // rows of activations for which they are unpacked once

// Adds the products of kRows rows of activations with kTile rows of weights over `columns` columns. Of the activations, kLanes
// columns of each row follow each other, then the next kLanes columns of each.
template <int kRows>
void multiply(const float* x, const float* weights, int64_t columns, Vec* sums) {
  Vec sum[kRows][kTile];
  for (int r = 0; r < kRows; ++r)
    for (int t = 0; t < kTile; ++t) sum[r][t] = sums[r * kTile + t];
  int64_t c = 0;
  do {
    Vec w[kTile];
    for (int t = 0; t < kTile; ++t) {
      w[t] = load(weights + t * kChunk + c);
      if (kRows > 1) KEEP_IN_REGISTER(w[t]);
    }
    for (int r = 0; r < kRows; ++r, x += kLanes) {
      Vec v = load(x);
      KEEP_IN_REGISTER(v);
      for (int t = 0; t < kTile; ++t) sum[r][t] = fma(v, w[t], sum[r][t]);
    }
  } while ((c += kLanes) < columns);
  for (int r = 0; r < kRows; ++r)
    for (int t = 0; t < kTile; ++t) sums[r * kTile + t] = sum[r][t];
}

using Multiply = void (*)(const float*, const float*, int64_t, Vec*);
constexpr Multiply kMultiply[] = {multiply<1>, multiply<2>, multiply<3>, multiply<4>, multiply<5>, multiply<6>};

// Rows of activations are multiplied in groups: as few as possible, of nearly equal size, since a lone row is least efficient.
struct Groups {
  int64_t rows, count;

  explicit Groups(int64_t rows) : rows(rows), count((rows + kMaxRows - 1) / kMaxRows) {}
  int64_t begin(int64_t group) const { return rows * group / count; }
};

// The activations in the order in which `multiply` reads them, group by group.
void interleave(const float* x, Groups groups, int64_t columns, float* to) {
  for (int64_t g = 0; g < groups.count; ++g)
    for (int64_t c = 0; c < columns; c += kLanes)
      for (int64_t r = groups.begin(g); r < groups.begin(g + 1); ++r, to += kLanes) store(to, load(x + r * columns + c));
}

struct Product {
  const Format* format;
  const float* x;  // interleaved
  const uint8_t* raw;
  float* y;
  Groups groups;
  int64_t columns, outputs, row_bytes;

  // Outputs first … first + count - 1 of all rows, count <= kTile.
  void tile(int64_t first, int64_t count) const {
    alignas(64) float weights[kTile * kChunk];
    alignas(64) Vec sums[kPanel * kTile];
    std::fill(weights + count * kChunk, weights + kTile * kChunk, 0.0f);
    for (int64_t g = 0, end; g < groups.count; g = end) {
      const int64_t row = groups.begin(g);
      for (end = g + 1; end < groups.count && groups.begin(end + 1) - row <= kPanel;) ++end;
      const int64_t rows = groups.begin(end) - row;
      std::memset(static_cast<void*>(sums), 0, rows * kTile * sizeof(Vec));
      for (int64_t c = 0; c < columns; c += kChunk) {
        const int64_t width = std::min<int64_t>(kChunk, columns - c);
        unpack_tile(first, count, c, width, weights);
        for (int64_t i = g; i < end; ++i) {
          const int64_t begin = groups.begin(i), size = groups.begin(i + 1) - begin;
          kMultiply[size - 1](x + begin * columns + c * size, weights, width, sums + (begin - row) * kTile);
        }
      }
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t t = 0; t < count; ++t) y[(row + r) * outputs + first + t] = sum_of_lanes(sums[r * kTile + t]);
    }
  }

  void unpack_tile(int64_t first, int64_t count, int64_t column, int64_t width, float* weights) const {
    const int64_t bytes = width / format->size * format->bytes;
    const uint8_t* blocks = raw + first * row_bytes + column / format->size * format->bytes;
    for (int64_t t = 0; t < count; ++t, blocks += row_bytes) {
      // The hardware follows one stream better than kTile short ones: ask for what the next tile will need.
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(blocks + kTile * row_bytes + i);
      format->unpack(blocks, width, weights + t * kChunk);
    }
  }
};

constexpr int64_t kPieceWork = 1 << 18;  // multiplications, or weights unpacked, that are worth a thread's attention

ffi::Error invalid(const std::string& message) { return ffi::Error(ffi::ErrorCode::kInvalidArgument, message); }

// The format, if it is known and `row_bytes` are whole blocks of `columns` weights.
const Format* find_format(int32_t id, int64_t columns, int64_t row_bytes) {
  for (const Format& f : kFormats)
    if (f.id == id) return columns % f.size == 0 && columns / f.size * f.bytes == row_bytes ? &f : nullptr;
  return nullptr;
}

std::string mismatch(int32_t id, int64_t columns, int64_t row_bytes) {
  return "rows of " + std::to_string(row_bytes) + " bytes do not hold " + std::to_string(columns) + " weights of ggml type " +
         std::to_string(id);
}

// Not even memory running out may unwind into XLA.
template <typename F>
ffi::Error guarded(F&& run) {
  try {
    run();
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, error.what());
  }
  return ffi::Error::Success();
}

ffi::Error matmul(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::U8> raw, ffi::Result<ffi::Buffer<ffi::F32>> y,
                  int32_t kind) {
  const auto xs = x.dimensions(), ws = raw.dimensions(), ys = y->dimensions();
  if (xs.size() != 2 || ws.size() != 2 || ys.size() != 2 || ys[0] != xs[0] || ys[1] != ws[0])
    return invalid("packed matmul takes x [rows, columns] and raw [outputs, bytes] and gives [rows, outputs]");
  const Format* format = find_format(kind, xs[1], ws[1]);
  if (!format) return invalid(mismatch(kind, xs[1], ws[1]));
  const int64_t rows = xs[0], columns = xs[1], outputs = ws[0], row_bytes = ws[1];
  if (rows == 0 || outputs == 0) return ffi::Error::Success();
  const int64_t piece = std::max<int64_t>(1, kPieceWork / std::max<int64_t>(1, kTile * rows * columns)) * kTile;
  return guarded([&] {
    const Groups groups(rows);
    std::unique_ptr<float[]> interleaved;
    const float* activations = x.typed_data();
    if (rows > 1) {
      interleaved.reset(new float[rows * columns]);
      interleave(activations, groups, columns, interleaved.get());
      activations = interleaved.get();
    }
    const Product product{format, activations, raw.typed_data(), y->typed_data(), groups, columns, outputs, row_bytes};
    share(pool, (outputs + piece - 1) / piece, [product, piece](int64_t i) {
      const int64_t end = std::min(product.outputs, (i + 1) * piece);
      for (int64_t o = i * piece; o < end; o += kTile) product.tile(o, std::min<int64_t>(kTile, end - o));
    });
  });
}

// ---- Unpacking ----------------------------------------------------------------------------------------------------------------

// To nearest, ties to even; a NaN stays one.
inline void to_bfloat16(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 64;
    to[i] = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
}

ffi::Error dequantize(ffi::ThreadPool pool, ffi::Buffer<ffi::U8> raw, ffi::Result<ffi::AnyBuffer> out, int32_t kind) {
  const auto ws = raw.dimensions(), os = out->dimensions();
  const bool wide = out->element_type() == ffi::F32;
  if (!wide && out->element_type() != ffi::BF16) return invalid("weights are unpacked to float32 or bfloat16");
  if (ws.size() != 2 || os.size() != 2 || ws[0] != os[0]) return invalid("unpacking takes [rows, bytes] and gives [rows, columns]");
  const int64_t rows = os[0], columns = os[1], row_bytes = ws[1];
  const Format* format = find_format(kind, columns, row_bytes);
  if (!format) return invalid(mismatch(kind, columns, row_bytes));
  if (rows == 0 || columns == 0) return ffi::Error::Success();
  const uint8_t* from = raw.typed_data();
  void* to = out->untyped_data();
  const int64_t piece = std::max<int64_t>(1, kPieceWork / columns);
  return guarded([&] {
    share(pool, (rows + piece - 1) / piece, [=](int64_t i) {
      for (int64_t r = i * piece; r < std::min(rows, (i + 1) * piece); ++r) {
        if (wide) {
          format->unpack(from + r * row_bytes, columns, static_cast<float*>(to) + r * columns);
          continue;
        }
        alignas(64) float weights[kChunk];
        for (int64_t c = 0; c < columns; c += kChunk) {
          const int64_t width = std::min<int64_t>(kChunk, columns - c);
          format->unpack(from + r * row_bytes + c / format->size * format->bytes, width, weights);
          to_bfloat16(weights, width, static_cast<uint16_t*>(to) + r * columns + c);
        }
      }
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(PackedMatmul, matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int32_t>("kind"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(PackedDequantize, dequantize,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int32_t>("kind"));
