// Loops for tests alone: what an operation would do if one of its threads failed, or if its kernels
// asked for a preparation of each thread.
#pragma once

#include <cstdint>
#include <string>

namespace ncl {

// Runs `items` items. The first one on a worker (or on the calling thread) throws std::bad_alloc if
// kind is "memory", else std::runtime_error. The others wait for the failure, at most 10 s.
// *begun: how many items have begun.
void run_failing_loop(int items, bool on_worker, const std::string& kind, int64_t* begun);

// The number of calls of Kernels::prepare_thread in `loops` loops that all threads take part in.
int count_preparations(int loops);

// Kernels that do nothing, with the formats of those in use: what then takes time is everything
// else. `use_kernels` ends it.
void use_idle_kernels();

#ifdef NCL_SANITIZE
// Commits a fault that a sanitizer must report: kind "read" (of a byte behind the memory that an
// operation has reserved), "overflow" (of a signed integer) or "race" (of two threads of the pool).
void misbehave(const std::string& kind);
#endif

}  // namespace ncl
