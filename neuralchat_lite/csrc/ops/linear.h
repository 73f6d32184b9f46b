// The operations of a decoder layer, put together from kernels and the thread pool. The contract is
// that of kernels/operations.py; pointers and shapes come checked from kernels/native.py.
#pragma once

#include <vector>

#include "kernels/kernels.h"

namespace ncl {

// Matrices that share an input, stacked by output.
struct Projection {
  std::vector<Matrix> parts;
  int rows = 0;
  int cols = 0;
  int limit = 0;  // of integer activations; 0: fp32 activations

  bool needs_integers() const;
};

// What is applied to the first half of an input; the product with the second half goes on.
enum class Activation { kNone, kSilu };

struct Linear {
  const Projection* projection;
  const float* x;  // [rows][cols], or [rows][2 * cols] with a gate
  int rows;
  const float* norm_weight;  // [cols] or null
  float eps;
  Activation gate;
  bool accumulate;
  float* out;  // [rows][projection rows]
};

struct Attention {
  const float* qkv;  // [count][(heads + 2 * kv_heads) * dim]
  int count, start;
  int heads, kv_heads, dim;
  int window;   // 0: none
  float scale;  // of the scores
  void* keys;
  void* values;
  FloatType cache_type;
  int capacity;
  const float* cos;  // [position][dim / 2]
  const float* sin;
  const float* query_norm;  // [dim] or null
  const float* key_norm;
  float eps;
  float* out;  // [count][heads * dim]
};

// Each operation takes the whole pool: calls from several threads wait for each other.
void linear(const Linear&);
void attention(const Attention&);

// Quantizes all row tiles; false when some tile cannot be done here (see Kernels::round_tile).
bool round_to_nearest(const Rounding&);

// Reads `bytes` of memory `passes` times with all threads; the bandwidth of each pass in bytes/s.
std::vector<double> measure_bandwidth(size_t bytes, int passes);

void set_threads(int threads);
void use_kernels(const Kernels* kernels);

}  // namespace ncl
