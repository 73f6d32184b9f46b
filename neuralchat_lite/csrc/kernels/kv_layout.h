// Where keys and values lie. kernels/kv_format.py says the same in PyTorch.
//
// They are kept in pages of kPage positions. A page holds, for each of its layers and for each kv
// head of a layer, the keys and then the values of its positions. A table of addresses leads from a
// position to its page: position p lies in slot p % kPage of page p / kPage.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ncl {

constexpr int kPage = 64;      // positions of a page
constexpr int kKeyBlock = 16;  // positions whose keys lie together

// How an element is stored: an index into Kernels::attend.
enum class KVType { kFp32, kBf16, kInt8 };
constexpr int kKVTypes = 3;

constexpr size_t element_bytes(KVType type) {
  return type == KVType::kFp32 ? 4 : type == KVType::kBf16 ? 2 : 1;
}

// Offsets in bytes within the memory of one head in a page. Scales, in bf16 and one for each
// position, are there with int8 alone.
struct HeadLayout {
  size_t keys;    // [kPage / 16][dim][16]
  size_t values;  // [kPage][dim]
  size_t key_scales;
  size_t value_scales;
  size_t bytes;  // of keys, values and scales
};

namespace {

[[maybe_unused]] constexpr HeadLayout head_layout(KVType type, int dim) {
  const size_t elements = kPage * static_cast<size_t>(dim) * element_bytes(type);
  const size_t scales = type == KVType::kInt8 ? kPage * sizeof(uint16_t) : 0;
  return {0, elements, 2 * elements, 2 * elements + scales, 2 * elements + 2 * scales};
}

// The index of element 0 of a key; the next is 16 further on.
[[maybe_unused]] constexpr size_t key_index(int slot, int dim) {
  return static_cast<size_t>(slot / kKeyBlock) * dim * kKeyBlock + slot % kKeyBlock;
}

[[maybe_unused]] constexpr size_t value_index(int slot, int dim) {
  return static_cast<size_t>(slot) * dim;
}

}  // namespace
}  // namespace ncl
