// What the functions that XLA calls have in common: errors, and sharing work among the threads of its pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// XLA makes its threads flush subnormal numbers to zero, but not necessarily the calling thread. The bits of a result
// must not depend on which thread computes it.
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

// Calls work(0) … work(count - 1) on this thread and on free threads of the pool. Waits for pieces that have begun,
// never for a thread to become free: all threads of the pool may be waiting here. Late threads find nothing left to do,
// possibly after this has returned; so they share ownership of the job.
void share(ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> work) {
  const auto job = std::make_shared<Job>();
  job->count = count;
  job->work = std::move(work);
  const int64_t others = std::min(pool.num_threads(), count) - 1;
  try {
    for (int64_t i = 0; i < others; ++i) pool.Schedule([job] { job->take_part(); });
  } catch (const std::bad_alloc&) {
    // The threads scheduled so far, and this one, do the work.
  }
  job->take_part();
  for (int spin = 0; spin < 1000 && !job->done(); ++spin) {
  }
  if (!job->done()) {
    std::unique_lock<std::mutex> lock(job->mutex);
    job->all_finished.wait(lock, [&] { return job->done(); });
  }
}

constexpr int64_t kPieceProducts = 1 << 18;  // minimum multiplications that are worth a thread

// Rows of activations are multiplied in groups: as few as possible, of nearly equal size: a single row is least
// efficient.
struct Groups {
  int64_t rows, count;

  Groups(int64_t rows, int64_t most) : rows(rows), count((rows + most - 1) / most) {}
  int64_t begin(int64_t group) const { return rows * group / count; }
};

inline ffi::Error invalid(const std::string& message) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, message);
}

inline std::string mismatch(int32_t id, int64_t columns, int64_t row_bytes) {
  return "rows of " + std::to_string(row_bytes) + " bytes do not hold " + std::to_string(columns) +
         " weights of ggml type " + std::to_string(id);
}

// What a product takes and gives: activations, weights, outputs, and the type of the weights.
inline auto product_binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::Buffer<ffi::F32>>()
      .Arg<ffi::Buffer<ffi::U8>>()
      .Ret<ffi::Buffer<ffi::F32>>()
      .Attr<int32_t>("kind");
}

// No exception, not even std::bad_alloc, may unwind into XLA.
template <typename F>
ffi::Error guarded(F&& run) {
  try {
    run();
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, error.what());
  }
  return ffi::Error::Success();
}

}  // namespace
