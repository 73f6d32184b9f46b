#include "ops/attention.h"

#include <algorithm>

#include "ops/runtime.h"

namespace ncl {
namespace {

// Rotates the pairs (i, i + dim / 2) of one head by the angles of its position.
void rotate(const float* x, const float* cos, const float* sin, int dim, float scale, float* out) {
  const int half = dim / 2;
  for (int i = 0; i < half; ++i) {
    out[i] = scale * (x[i] * cos[i] - x[i + half] * sin[i]);
    out[i + half] = scale * (x[i + half] * cos[i] + x[i] * sin[i]);
  }
}

// Where the keys (or values) of one kv head begin.
template <class Pointer>
Pointer of_head(const Attention& op, Pointer all, int kv_head) {
  return all + static_cast<size_t>(kv_head) * op.capacity * op.format->position_bytes(op.dim);
}

size_t place_scratch(const Attention& op) { return 2 * scratch_bytes<float>(op.dim); }

// Rotates the queries of new position `index` into `queries`, and its keys and values into the
// cache.
void place_position(const Attention& op, const Kernels& kernels, int index, float* queries,
                    Scratch scratch) {
  const int dim = op.dim, position = op.start + index, slot = position % op.capacity;
  const float* qkv = op.qkv + static_cast<size_t>(index) * (op.heads + 2 * op.kv_heads) * dim;
  const float* cos = op.cos + static_cast<size_t>(position) * (dim / 2);
  const float* sin = op.sin + static_cast<size_t>(position) * (dim / 2);
  float* normed = take<float>(scratch, dim);
  float* rotated = take<float>(scratch, dim);
  const auto with_norm = [&](const float* x, const float* weight) -> const float* {
    if (!weight) return x;
    kernels.rms_norm(x, weight, op.eps, dim, normed);
    return normed;
  };
  for (int head = 0; head < op.heads; ++head, qkv += dim) {
    float* query = queries + (static_cast<size_t>(index) * op.heads + head) * dim;
    rotate(with_norm(qkv, op.query_norm), cos, sin, dim, op.scale, query);
  }
  auto* keys = static_cast<char*>(op.keys);
  for (int head = 0; head < op.kv_heads; ++head, qkv += dim) {
    rotate(with_norm(qkv, op.key_norm), cos, sin, dim, 1.0f, rotated);
    op.format->write_key(rotated, dim, slot, of_head(op, keys, head));
  }
  auto* values = static_cast<char*>(op.values);
  for (int head = 0; head < op.kv_heads; ++head, qkv += dim) {
    op.format->write_value(qkv, dim, slot, of_head(op, values, head));
  }
}

size_t attend_scratch(const Attention& op, const Kernels& kernels, int queries) {
  return scratch_bytes<const float*>(queries) + scratch_bytes<float*>(queries) +
         2 * scratch_bytes<int>(queries) + kernels.scratch.attend(op.dim);
}

// The queries of one kv head at positions [begin, end) of the new ones.
void attend_positions(const Attention& op, const Kernels& kernels, const float* queries,
                      int kv_head, int begin, int end, Scratch scratch) {
  const int group = op.heads / op.kv_heads, count = (end - begin) * group;
  const float** query = take<const float*>(scratch, count);
  float** output = take<float*>(scratch, count);
  int* first = take<int>(scratch, count);
  int* last = take<int>(scratch, count);
  for (int i = 0; i < count; ++i) {
    const int index = begin + i / group;
    const size_t at =
        (static_cast<size_t>(index) * op.heads + kv_head * group + i % group) * op.dim;
    query[i] = queries + at;
    output[i] = op.out + at;
    last[i] = op.start + index;
    first[i] = op.window ? std::max(0, last[i] - op.window + 1) : 0;
  }
  const auto attend = kernels.attend[static_cast<int>(op.format->type)];
  attend({query, output, first, last, count, op.dim,
          of_head(op, static_cast<const char*>(op.keys), kv_head),
          of_head(op, static_cast<const char*>(op.values), kv_head), op.capacity},
         scratch);
}

}  // namespace

void attention(const Attention& op) {
  Runtime& rt = runtime();
  const std::lock_guard lock(rt.turn);
  const Kernels& kernels = *rt.kernels;
  auto* queries =
      static_cast<float*>(rt.queries.reserve(sizeof(float) * op.count * op.heads * op.dim));
  rt.run(op.count, place_scratch(op),
         [&](int index, Scratch scratch) { place_position(op, kernels, index, queries, scratch); });
  const int group = op.heads / op.kv_heads;
  const int step = std::max(1, 16 / group);  // positions: about 16 queries
  const int steps = (op.count + step - 1) / step;
  rt.run(op.kv_heads * steps, attend_scratch(op, kernels, step * group),
         [&](int item, Scratch scratch) {
           const int begin = item % steps * step;
           attend_positions(op, kernels, queries, item / steps, begin,
                            std::min(op.count, begin + step), scratch);
         });
}

}  // namespace ncl
