#include "ops/test_hooks.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>
#include <stdexcept>
#include <thread>

#include "ops/runtime.h"

namespace ncl {
namespace {

template <class Condition>
void wait_until(Condition&& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!condition() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
}

std::atomic<int> preparations{0};

}  // namespace

void run_failing_loop(int items, bool on_worker, const std::string& kind, int64_t* begun) {
  Runtime& rt = runtime();
  const std::lock_guard lock(rt.turn);
  std::atomic<bool> failed{false};
  std::atomic_ref count(*begun);
  rt.pool().run(items, [&](int, int thread) {
    ++count;
    if ((thread != 0) == on_worker) {
      wait_until([&] { return count.load() > 1; });  // another thread is in the loop, too
      failed = true;
      if (kind == "memory") throw std::bad_alloc();
      throw std::runtime_error("an item of the loop failed");
    }
    wait_until([&] { return failed.load(); });
    // Slow enough for the exception to arrive before all items are taken.
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  });
}

int count_preparations(int loops) {
  Runtime& rt = runtime();
  const std::lock_guard lock(rt.turn);
  const Kernels* before = rt.kernels;
  // Never deleted: each thread remembers the address of the kernels that it is prepared for.
  Kernels* counting = new Kernels(*before);
  counting->prepare_thread = [] { ++preparations; };
  preparations = 0;
  rt.kernels = counting;
  const int threads = rt.pool().threads();
  for (int loop = 0; loop < loops; ++loop) {
    std::atomic<int> arrived{0};
    rt.run(threads, 0, [&](int, Scratch) {
      ++arrived;
      wait_until([&] { return arrived.load() == threads; });
    });
  }
  rt.kernels = before;
  return preparations;
}

void use_idle_kernels() {
  Runtime& rt = runtime();
  const std::lock_guard lock(rt.turn);
  // Never deleted, as above.
  Kernels* idle = new Kernels(*rt.kernels);
  idle->activations.write_row = [](const float*, const Activations&, int) {};
  idle->rms_norm = [](const float*, const float*, float, int, float*) {};
  idle->silu_gate = [](const float*, const float*, int, float*) {};
  idle->integer_product = [](const Matrix&, int, int, const Activations&, Output, Scratch) {};
  idle->float_product = [](const Matrix&, int, int, const float*, int, Output, Scratch) {};
  idle->dense_product = [](const Matrix&, int, int, const float*, int, Output) {};
  for (auto& attend : idle->attend) {
    attend = [](const AttentionTask& task) { std::fill_n(task.total, task.count, 1.0f); };
  }
  rt.kernels = idle;
}

#ifdef NCL_SANITIZE
void misbehave(const std::string& kind) {
  Runtime& rt = runtime();
  const std::lock_guard lock(rt.turn);
  if (kind == "read") {
    const auto* bytes = static_cast<volatile unsigned char*>(rt.scratch.reserve(1 << 20));
    (void)bytes[1 << 20];
  } else if (kind == "overflow") {
    volatile int largest = 0x7fffffff;
    largest = largest + 1;
  } else if (kind == "race") {
    int sum = 0;  // no atomic
    std::atomic<int> arrived{0};
    rt.pool().run(2, [&](int item, int) {
      ++arrived;
      wait_until([&] { return arrived.load() == 2; });
      sum += item;
    });
  }
}
#endif

}  // namespace ncl
