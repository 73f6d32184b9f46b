// How keys and values are stored: how a new position is written. kernels/kv_layout.h has their
// order in memory, kernels/kv_format.py the same in PyTorch.
#pragma once

#include <string>

#include "kernels/kv_layout.h"

namespace ncl {

struct KVFormat {
  const char* name;
  KVType type;  // chooses the kernel that reads it
  // Stores a key, or a value, of dim floats in a slot of a head.
  void (*write_key)(const float* key, int dim, int slot, uint8_t* head);
  void (*write_value)(const float* value, int dim, int slot, uint8_t* head);
};

// Throws std::out_of_range for an unknown name.
const KVFormat& kv_format(const std::string& name);

}  // namespace ncl
