// Work items, longest first, taken from a shared counter by whatever threads the caller's parallel loop has.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

namespace sampleattn::cpu {

// Scratch memory on a cache line boundary.
class Buffer {
 public:
  explicit Buffer(int64_t floats) : data_(allocate(floats)) {}
  float* get() const { return data_.get(); }

 private:
  static constexpr size_t kAlignment = 64;
  struct Free {
    void operator()(float* p) const { ::operator delete[](p, std::align_val_t{kAlignment}); }
  };
  static float* allocate(int64_t floats) {
    const size_t bytes = sizeof(float) * (floats > 0 ? floats : 1);
    return static_cast<float*>(::operator new[](bytes, std::align_val_t{kAlignment}));
  }
  std::unique_ptr<float[], Free> data_;
};

// parallel_for(n, f) calls f(begin, end) on parts of [0, n). make_worker() is called once per participating thread and
// returns a function of the item's index.
template <class ParallelFor, class MakeWorker>
void for_each_item(const ParallelFor& parallel_for, int64_t threads, int64_t items, const MakeWorker& make_worker) {
  if (items == 0) return;
  std::atomic<int64_t> next{0};
  const int64_t workers = threads < items ? threads : items;
  parallel_for(workers, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      auto work = make_worker();
      for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) work(item);
    }
  });
}

}  // namespace sampleattn::cpu
