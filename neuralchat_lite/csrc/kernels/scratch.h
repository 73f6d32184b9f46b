// Memory that a kernel uses while it runs. Each thread has a piece of its own, allocated before the
// loop, so that no item of a loop allocates.
#pragma once

#include <cassert>
#include <cstddef>

namespace ncl {

constexpr size_t kCacheLine = 64;

struct Scratch {
  unsigned char* begin;
  unsigned char* end;
};

namespace {

// Bytes that `count` values take in scratch memory: whole cache lines.
template <class T>
constexpr size_t scratch_bytes(size_t count) {
  return (count * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
}

// Takes memory for `count` values from the front, aligned to a cache line and not initialized.
template <class T>
T* take(Scratch& scratch, size_t count) {
  T* taken = reinterpret_cast<T*>(scratch.begin);
  scratch.begin += scratch_bytes<T>(count);
  assert(scratch.begin <= scratch.end);
  return taken;
}

}  // namespace
}  // namespace ncl
