// Memory that operations use while they run, and keep for the next one.
#pragma once

#include <cstddef>
#include <new>

#include "kernels/scratch.h"

namespace ncl {

class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { release(); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // At least `bytes` of memory, aligned to a cache line. What it held is lost when it grows.
  // Throws std::bad_alloc.
  void* reserve(size_t bytes) {
    if (bytes > size_) {
      release();
      data_ = ::operator new(bytes, std::align_val_t{kCacheLine});
      size_ = bytes;
    }
    return data_;
  }

 private:
  void release() {
    ::operator delete(data_, std::align_val_t{kCacheLine});
    data_ = nullptr;
    size_ = 0;
  }

  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace ncl
