// Loops for tests alone: what an operation would do if one of its threads failed, or if its kernels
// asked for a preparation of each thread.
#pragma once

#include <cstdint>
#include <string>

namespace ncl {

// Runs `items` items of which the first on a worker (or on the calling thread) throws: kind
// "memory" std::bad_alloc, else std::runtime_error. *begun: how many items have begun. The others
// wait for the failure, 10 s at most.
void run_failing_loop(int items, bool on_worker, const std::string& kind, int64_t* begun);

// How often `loops` loops, in each of which every thread takes part, call Kernels::prepare_thread.
int count_preparations(int loops);

#ifdef NEURALCHAT_LITE_SANITIZE
// Commits a fault that a sanitizer must report: kind "read" (of a byte behind the memory that an
// operation has reserved), "overflow" (of a signed integer) or "race" (of two threads of the pool).
void misbehave(const std::string& kind);
#endif

}  // namespace ncl
