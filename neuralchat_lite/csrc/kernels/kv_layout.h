// Where the keys and values of one head lie in the cache. kernels/kv_format.py says the same in
// shapes. Position p has slot p % capacity.
#pragma once

#include <cstddef>

namespace ncl {

constexpr int kKeyBlock = 16;  // positions whose keys lie together

// How an element is stored: an index into Kernels::attend.
enum class KVType { kFp32, kBf16 };
constexpr int kKVTypes = 2;

namespace {

// keys: [capacity / 16][dim][16]. The index of element 0 of a key; the next is 16 further on.
[[maybe_unused]] inline size_t key_index(int slot, int dim) {
  return static_cast<size_t>(slot / kKeyBlock) * dim * kKeyBlock + slot % kKeyBlock;
}

// values: [capacity][dim].
[[maybe_unused]] inline size_t value_index(int slot, int dim) {
  return static_cast<size_t>(slot) * dim;
}

}  // namespace
}  // namespace ncl
