// A pool for short parallel loops: workers spin a moment for the next loop before they sleep.
//
// Our own, and not OpenMP: faster between short loops, whatever OMP_WAIT_POLICY says
// (docs/design.md has the measurement).
#pragma once

#include <atomic>
#include <thread>
#include <vector>

namespace ncl {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(item) for every item in [0, items), each once, on any thread. One loop at a time:
  // the caller sees to that.
  template <class Body>
  void run(int items, Body&& body) {
    if (items <= 1 || workers_.empty()) {
      for (int item = 0; item < items; ++item) body(item);
      return;
    }
    start([](void* context, int item) { (*static_cast<Body*>(context))(item); }, &body, items);
  }

 private:
  using Call = void (*)(void* context, int item);

  void start(Call call, void* context, int items);
  void close();  // and wait until no worker is in the loop
  void work();
  void stop();
  void serve();

  Call call_ = nullptr;
  void* context_ = nullptr;
  int items_ = 0;
  bool stopping_ = false;
  alignas(64) std::atomic<int> next_{0};       // item to take
  alignas(64) std::atomic<uint32_t> loop_{0};  // counts loops; workers wait for it to change
  // A worker that comes late must not hold up the loop: only those inside are waited for.
  alignas(64) std::atomic<bool> open_{false};  // may workers enter the loop?
  alignas(64) std::atomic<int> inside_{0};     // workers that are in it
  std::vector<std::thread> workers_;
};

}  // namespace ncl
