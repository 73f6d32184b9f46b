// A pool for short parallel loops: workers spin a moment for the next loop before they sleep.
//
// It is used instead of OpenMP, which is slower between short loops with every OMP_WAIT_POLICY
// (docs/design.md has the measurement).
#pragma once

#include <atomic>
#include <exception>
#include <thread>
#include <type_traits>
#include <vector>

namespace ncl {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(item, thread) for every item in [0, items), each once, on any thread: 0 is the
  // caller, 1 to threads() - 1 are the workers. The caller runs one loop at a time.
  //
  // A thread takes neighbouring items, one after the other, and what is left of the others' at the
  // end. So an item may ask for the memory of the next one.
  //
  // The first exception that an item throws, on whatever thread, ends the loop: items that have
  // not begun are skipped, those that have begun end, and the caller gets the exception.
  template <class Body>
  void run(int items, Body&& body) {
    if (items <= 1 || workers_.empty()) {
      for (int item = 0; item < items; ++item) body(item, 0);
      return;
    }
    start([](void* context, int item,
             int thread) { (*static_cast<std::remove_reference_t<Body>*>(context))(item, thread); },
          &body, items);
  }

 private:
  struct alignas(64) Items {
    std::atomic<int> next{0};  // to take
    int end = 0;
  };
  using Call = void (*)(void* context, int item, int thread);

  void start(Call call, void* context, int items);
  void close();  // and wait until no worker is in the loop
  void work(int thread) noexcept;
  void stop();
  void serve(int thread);

  Call call_ = nullptr;
  void* context_ = nullptr;
  std::exception_ptr failure_;  // the first of this loop; written by the thread that sets failed_
  std::atomic<bool> failed_{false};
  std::atomic<bool> stopping_{false};          // read by workers that come late to an earlier loop
  std::vector<Items> items_;                   // of each thread
  alignas(64) std::atomic<uint32_t> loop_{0};  // counts loops; workers wait for it to change
  // A worker that comes late must not hold up the loop: only those inside are waited for.
  alignas(64) std::atomic<bool> open_{false};  // may workers enter the loop?
  alignas(64) std::atomic<int> inside_{0};     // workers that are in it
  std::vector<std::thread> workers_;
};

}  // namespace ncl
