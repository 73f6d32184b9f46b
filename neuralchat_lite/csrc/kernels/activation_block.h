// The numbers that a block of 32 columns of activations becomes, in every instruction set and
// format: integers x * (limit / largest), rounded to nearest even, and the scale largest / limit.
//
// - A block with a NaN or infinity is zeros with the scale NaN.
// - A block of subnormals has no inverse in fp32. It is negligible, so its integers are zero.
// - Padded columns are zero.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/kernels.h"

namespace ncl {
namespace {

[[maybe_unused]] inline int blocks_of(int cols) { return (cols + kColumnBlock - 1) / kColumnBlock; }

// The largest integer that an activation becomes. For bf16 it is 127 * 256 + 127, the largest one
// that is hi * 256 + lo with both signed bytes: a set may multiply two planes of 8 bits. That is
// far more than bf16's 8 significant bits.
[[maybe_unused]] constexpr int largest_integer(ComputeType type) {
  return type == ComputeType::kInt8 ? 127 : 32639;
}

struct BlockScales {
  float inverse;  // what values are multiplied by; 0: all integers are zero, also those of NaN
  float scale;
};

[[maybe_unused]] inline BlockScales block_scales(float largest, bool finite, int limit) {
  const float inverse = finite && largest > 0 ? limit / largest : 0.0f;
  return {std::isfinite(inverse) ? inverse : 0.0f,
          finite ? largest / limit : std::numeric_limits<float>::quiet_NaN()};
}

}  // namespace
}  // namespace ncl
