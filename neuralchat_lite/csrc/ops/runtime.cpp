#include "ops/runtime.h"

#include <pthread.h>

#include <new>

#include "runtime/cpu.h"

namespace ncl {

Runtime::Runtime() : kernels(instruction_sets().back().kernels) {}

ThreadPool& Runtime::pool() {
  if (!threads) threads = std::make_unique<ThreadPool>(thread_count);
  return *threads;
}

void Runtime::prepare_this_thread() {
  thread_local const Kernels* prepared = nullptr;
  if (prepared == kernels) return;
  kernels->prepare_thread();
  prepared = kernels;
}

Runtime& runtime() {
  // Never deleted: a worker may still sleep in it when the process ends.
  static Runtime* instance = [] {
    static Runtime* current = new Runtime;
    // Threads do not survive a fork, and the lock may be held: the child starts with a new pool.
    pthread_atfork(nullptr, nullptr, [] {
      const int thread_count = current->thread_count;
      const Kernels* kernels = current->kernels;
      new (current) Runtime;  // over the old one, whose threads are gone
      current->thread_count = thread_count;
      current->kernels = kernels;
    });
    return current;
  }();
  return *instance;
}

void set_threads(int threads) {
  Runtime& rt = runtime();
  const std::lock_guard lock(rt.turn);
  if (threads != rt.thread_count) rt.threads.reset();
  rt.thread_count = threads;
}

void use_kernels(const Kernels* kernels) {
  Runtime& rt = runtime();
  const std::lock_guard lock(rt.turn);
  rt.kernels = kernels;
}

}  // namespace ncl
