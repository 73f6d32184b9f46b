// One table of kernels per instruction set. Each set is one file, compiled with its own flags; what
// is inline in our headers is in an anonymous namespace, so that each has its own copy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/layout.h"

namespace ncl {

struct Kernels {
  const char* name;

  // out = x * weight / sqrt(mean(x^2) + eps), over n values.
  void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* out);
  // out = silu(gate) * up.
  void (*silu_gate)(const float* gate, const float* up, int n, float* out);
  // One row of x [cols] into row `row` of `out`, to integers of at most `limit`.
  void (*quantize_row)(const float* x, int cols, int limit, IntegerRows& out, int row);

  // Row tiles [begin, end) of a packed matrix times integer activations.
  void (*integer_product)(const Matrix&, int begin, int end, const IntegerRows& x, Output out);
  // The same with fp32 activations x [rows][cols]: weights and sums in fp32.
  void (*float_product)(const Matrix&, int begin, int end, const float* x, int rows, Output out);
  // Rows 16 * begin .. 16 * end of a row-major matrix times fp32 activations.
  void (*dense_product)(const Matrix&, int begin, int end, const float* x, int rows, Output out);

  void (*attend)(const AttentionTask&);

  // Quantizes one row tile. False, with the tile unfinished, when it holds NaN or infinity or
  // needs a scale that is too large or subnormal in its type.
  bool (*round_tile)(const Rounding&, int tile);

  // Reads n bytes, a multiple of 128, and returns a value that depends on them all: the
  // bandwidth probe.
  uint64_t (*read_all)(const void* data, size_t n);
};

const Kernels* generic_kernels();
const Kernels* avx2_kernels();  // null when the build target has no such instructions
// Next: avx512_vnni_kernels(), amx_kernels(), neon_kernels(), each a file and a row in cpu.cpp.

}  // namespace ncl
