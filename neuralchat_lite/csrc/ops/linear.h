// y = f(x) W^T + b: a matrix product with what comes before and after it fused in. The contract is
// that of kernels/operations.py; kernels/native.py has checked pointers and shapes.
#pragma once

#include <vector>

#include "ops/runtime.h"

namespace ncl {

// Matrices that share an input, stacked by output.
struct Projection {
  ComputeType compute;
  std::vector<Matrix> parts;
  int rows = 0;
  int cols = 0;

  bool has_packed() const;
};

// The activation of the first half of an input, which is then multiplied with the second half.
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

// The caller holds runtime.turn.
void linear(Runtime& runtime, const Linear&);

}  // namespace ncl
