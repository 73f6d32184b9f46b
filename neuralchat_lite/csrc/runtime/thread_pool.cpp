#include "runtime/thread_pool.h"

#include <chrono>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ncl {
namespace {

// How long a worker spins: longer than the serial parts of a step, such as norms, and than what
// Python does between two steps of a small model (65 us, docs/design.md); too short to be noticed
// on an idle machine.
constexpr auto kSpinTime = std::chrono::microseconds(100);

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`: spinning first, then asleep.
template <class T>
void wait_for_change(const std::atomic<T>& value, T old) {
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 32; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  while (value.load(std::memory_order_acquire) == old) value.wait(old);
}

}  // namespace

ThreadPool::ThreadPool(int threads) : items_(threads) {
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(i); });
  } catch (...) {  // the system has no more threads
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_ = true;
  loop_.fetch_add(1, std::memory_order_release);
  loop_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::start(Call call, void* context, int items) {
  call_ = call;
  context_ = context;
  const int64_t threads = this->threads();
  for (int64_t i = 0; i < threads; ++i) {
    items_[i].next.store(static_cast<int>(items * i / threads), std::memory_order_relaxed);
    items_[i].end = static_cast<int>(items * (i + 1) / threads);
  }
  open_.store(true);
  loop_.fetch_add(1);
  loop_.notify_all();
  work(0);
  close();
  if (failed_.load()) {
    failed_.store(false);
    std::rethrow_exception(std::exchange(failure_, nullptr));
  }
}

void ThreadPool::close() {
  // Sequentially consistent on both sides: a worker sees the loop closed, or we see it inside.
  open_.store(false);
  for (int inside; (inside = inside_.load()) != 0;) wait_for_change(inside_, inside);
}

void ThreadPool::work(int thread) noexcept {
  try {
    const int threads = static_cast<int>(items_.size());
    for (int i = 0; i < threads; ++i) {
      Items& of = items_[(thread + i) % threads];  // its own, then those of the others
      for (int item; (item = of.next.fetch_add(1, std::memory_order_relaxed)) < of.end;) {
        call_(context_, item, thread);
      }
    }
  } catch (...) {
    for (Items& of : items_) of.next.store(of.end, std::memory_order_relaxed);
    // Seen by the caller: it reads after this thread has left the loop.
    if (!failed_.exchange(true)) failure_ = std::current_exception();
  }
}

void ThreadPool::serve(int thread) {
  for (uint32_t seen = 0;;) {
    wait_for_change(loop_, seen);
    seen = loop_.load();
    if (stopping_.load()) return;
    inside_.fetch_add(1);
    if (open_.load()) work(thread);
    inside_.fetch_sub(1);
    inside_.notify_all();
  }
}

}  // namespace ncl
