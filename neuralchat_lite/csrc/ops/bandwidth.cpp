#include "ops/bandwidth.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>

#include "ops/runtime.h"

namespace ncl {
namespace {

// Anonymous memory on huge pages.
class Pages {
 public:
  explicit Pages(size_t size) : size_(size) {
    data_ = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    madvise(data_, size, MADV_HUGEPAGE);
#endif
  }
  ~Pages() { munmap(data_, size_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_;
  size_t size_;
};

}  // namespace

std::vector<double> measure_bandwidth(size_t bytes, int passes) {
  constexpr size_t kChunk = 1 << 20;
  const int chunks = static_cast<int>(std::max<size_t>(1, bytes / kChunk));
  const size_t size = chunks * kChunk;
  const Pages pages(size);
  char* data = pages.data();
  Runtime& rt = runtime();
  const std::lock_guard lock(rt.turn);
  const Kernels& kernels = *rt.kernels;
  // Written first: pages that were never written all map to one page of zeros.
  rt.run(chunks, 0, [&](int chunk, Scratch) {
    std::fill_n(data + chunk * kChunk, kChunk, static_cast<char>(chunk));
  });
  std::vector<double> results;
  std::atomic<uint64_t> sink{0};
  for (int pass = 0; pass < passes; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    rt.run(chunks, 0,
           [&](int chunk, Scratch) { sink ^= kernels.read_all(data + chunk * kChunk, kChunk); });
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    results.push_back(static_cast<double>(size) / time.count());
  }
  return results;
}

}  // namespace ncl
