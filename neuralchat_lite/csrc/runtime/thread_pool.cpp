#include "runtime/thread_pool.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ncl {
namespace {

// Longer than Python needs between two operations of a layer, shorter than anyone notices on an
// idle machine.
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

ThreadPool::ThreadPool(int threads) {
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
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
  items_ = items;
  next_.store(0, std::memory_order_relaxed);
  open_.store(true);
  loop_.fetch_add(1);
  loop_.notify_all();
  try {
    work();
  } catch (...) {  // no worker may go on with what the caller is about to give up
    next_.store(items);
    close();
    throw;
  }
  close();
}

void ThreadPool::close() {
  // Sequentially consistent on both sides: a worker sees the loop closed, or we see it inside.
  open_.store(false);
  for (int inside; (inside = inside_.load()) != 0;) wait_for_change(inside_, inside);
}

void ThreadPool::work() {
  for (int item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < items_;) {
    call_(context_, item);
  }
}

void ThreadPool::serve() {
  for (uint32_t seen = 0;;) {
    wait_for_change(loop_, seen);
    seen = loop_.load();
    if (stopping_) return;
    inside_.fetch_add(1);
    if (open_.load()) work();
    inside_.fetch_sub(1);
    inside_.notify_all();
  }
}

}  // namespace ncl
