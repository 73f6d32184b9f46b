// How keys and values are stored: element type, bytes, and how a new position is written.
// kernels/kv_layout.h has their order in memory. kernels/kv_format.py has the same in PyTorch.
#pragma once

#include <string>

#include "kernels/kv_layout.h"

namespace ncl {

struct KVFormat {
  const char* name;
  KVType type;  // chooses the kernel that reads it
  // Bytes of one key, or one value, of one head.
  size_t (*position_bytes)(int dim);
  // Stores a key, or a value, of dim floats in a slot of its head.
  void (*write_key)(const float* key, int dim, int slot, void* keys);
  void (*write_value)(const float* value, int dim, int slot, void* values);
};

// Throws std::out_of_range for an unknown name.
const KVFormat& kv_format(const std::string& name);

}  // namespace ncl
