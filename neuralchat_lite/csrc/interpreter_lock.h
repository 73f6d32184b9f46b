// Python's lock: given up while an operation runs, and not taken back once the process ends.
//
// When the interpreter is finalized, Python before 3.14 ends a thread that asks for the lock by
// unwinding its stack, through C++ frames that must not throw: the whole process is aborted. So
// threads are held before they ask.
#pragma once

#include <Python.h>

#include <vector>

namespace ncl {

// Gives the lock up, and takes it back at the end of its scope. A guard for nb::call_guard.
class WithoutInterpreterLock {
 public:
  WithoutInterpreterLock();
  ~WithoutInterpreterLock();
  WithoutInterpreterLock(const WithoutInterpreterLock&) = delete;
  WithoutInterpreterLock& operator=(const WithoutInterpreterLock&) = delete;

 private:
  PyThreadState* state_;
};

// From now on the process ends: every thread but the calling one is held, for ever, when it begins
// an operation or comes back from one. Returns when none is on its way back to Python.
void leave();

// Holds the calling thread, if the process ends.
void hold_if_leaving();

// The threads that are held, by the numbers that Python's threading.get_ident gives them.
std::vector<unsigned long> held_threads();

}  // namespace ncl
