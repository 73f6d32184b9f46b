#include "interpreter_lock.h"

#include <nanobind/nanobind.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

namespace ncl {
namespace {

struct Leaving {
  // Sequentially consistent: a thread that comes back sees `begun`, or `leave` sees it coming.
  std::atomic<bool> begun{false};
  std::atomic<int> returning{0};  // threads on their way back to Python
  std::thread::id leaver;         // set before `begun`
  std::mutex mutex;               // of `held`
  std::vector<unsigned long> held;

  bool must_hold() const { return begun.load() && std::this_thread::get_id() != leaver; }

  [[noreturn]] void hold() {
    {
      const std::lock_guard lock(mutex);
      held.push_back(PyThread_get_thread_ident());
      nanobind::set_leak_warnings(false);  // what this thread uses stays, and is no fault
    }
    for (;;) std::this_thread::sleep_for(std::chrono::hours(24));
  }
};

// Never deleted: held threads outlive everything.
Leaving& leaving() {
  static Leaving* instance = [] {
    static Leaving* current = new Leaving;
    // Threads do not survive a fork: none is on its way back in the child.
    pthread_atfork(nullptr, nullptr, [] { new (current) Leaving; });
    return current;
  }();
  return *instance;
}

}  // namespace

WithoutInterpreterLock::WithoutInterpreterLock() : state_(PyEval_SaveThread()) {
  if (leaving().must_hold()) leaving().hold();
}

WithoutInterpreterLock::~WithoutInterpreterLock() {
  Leaving& all = leaving();
  all.returning.fetch_add(1);
  if (all.must_hold()) {
    all.returning.fetch_sub(1);
    all.hold();
  }
  PyEval_RestoreThread(state_);
  all.returning.fetch_sub(1);
}

void leave() {
  Leaving& all = leaving();
  PyThreadState* state = PyEval_SaveThread();
  all.leaver = std::this_thread::get_id();
  all.begun.store(true);
  while (all.returning.load()) std::this_thread::sleep_for(std::chrono::microseconds(100));
  PyEval_RestoreThread(state);
}

void hold_if_leaving() {
  if (!leaving().must_hold()) return;
  PyEval_SaveThread();
  leaving().hold();
}

std::vector<unsigned long> held_threads() {
  const std::lock_guard lock(leaving().mutex);
  return leaving().held;
}

}  // namespace ncl
