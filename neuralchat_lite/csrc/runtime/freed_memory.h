// Memory that was freed and that the C library keeps: it can go back to the system.
#pragma once

namespace ncl {

// Returns what is free in the heaps of all threads, pages at a time, with glibc. Other C libraries
// have no such call, and nothing happens.
void return_freed_memory();

}  // namespace ncl
