// Rotary embedding, cache write and causal attention in one, for the new positions of several
// sequences. The contract is that of kernels/operations.py; kernels/native.py has checked pointers
// and shapes.
#pragma once

#include "ops/kv_format.h"
#include "ops/runtime.h"

namespace ncl {

// New positions of one sequence: start .. start + count - 1.
struct Span {
  int count;
  int start;
  uint8_t* const* pages;  // page of position p: pages[p / kPage]; null where no query looks
};

// What attention needs to know of a layer.
struct AttentionShape {
  int heads, kv_heads, dim;
  int window;               // positions that a query sees, itself included; 0: all
  float scale;              // of the scores
  const KVFormat* format;   // of keys and values
  const float* query_norm;  // [dim] or null
  const float* key_norm;
  float eps;
  int page_layer;  // the number of the layer among those in a page

  size_t head_bytes() const { return head_layout(format->type, dim).bytes; }
  // Where a kv head of this layer lies in a page.
  size_t head(int kv_head) const {
    return (static_cast<size_t>(page_layer) * kv_heads + kv_head) * head_bytes();
  }
};

struct Rotary {
  const float* cos;  // [position][dim / 2]
  const float* sin;
};

struct Attention {
  const AttentionShape* shape;
  const Span* spans;
  int span_count;
  Rotary rotary;
  const float* qkv;  // [rows of all spans][(heads + 2 * kv_heads) * dim]
  float* out;        // [rows][heads * dim]
};

// The caller holds runtime.turn.
void attention(Runtime& runtime, const Attention&);

}  // namespace ncl
