// Rotary embedding, cache write and causal attention in one. The contract is that of
// kernels/operations.py; kernels/native.py has checked pointers and shapes.
#pragma once

#include "ops/kv_format.h"

namespace ncl {

struct Attention {
  const float* qkv;  // [count][(heads + 2 * kv_heads) * dim]
  int count, start;
  int heads, kv_heads, dim;
  int window;   // 0: none
  float scale;  // of the scores
  void* keys;   // of all kv heads, one after the other
  void* values;
  const KVFormat* format;
  int capacity;
  const float* cos;  // [position][dim / 2]
  const float* sin;
  const float* query_norm;  // [dim] or null
  const float* key_norm;
  float eps;
  float* out;  // [count][heads * dim]
};

void attention(const Attention&);

}  // namespace ncl
