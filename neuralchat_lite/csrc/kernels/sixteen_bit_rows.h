// An activation format for integer products: rows in 16 bits, one scale per block of 32 columns.
// Columns lie in their order; padded columns are zero.
#pragma once

#include "kernels/activation_block.h"
#include "kernels/kernels.h"

namespace ncl {
namespace {

struct SixteenBitRows {
  int rows;
  int blocks;
  int16_t* values;  // [rows][blocks * 32]
  float* scales;    // [rows][blocks]; NaN where the block held a NaN or infinity
  int32_t* sums;    // [rows][blocks], of the values, for subtracting zero points

  int16_t* row_values(int row) const {
    return values + static_cast<size_t>(row) * blocks * kColumnBlock;
  }
  float* row_scales(int row) const { return scales + static_cast<size_t>(row) * blocks; }
  int32_t* row_sums(int row) const { return sums + static_cast<size_t>(row) * blocks; }
};

[[maybe_unused]] inline size_t sixteen_bit_bytes(int rows, int cols, ComputeType type) {
  if (type == ComputeType::kFp32) return 0;
  const size_t block = kColumnBlock * sizeof(int16_t) + sizeof(float) + sizeof(int32_t);
  return static_cast<size_t>(rows) * blocks_of(cols) * block;
}

[[maybe_unused]] inline SixteenBitRows sixteen_bit_rows(const Activations& x) {
  const int blocks = blocks_of(x.cols);
  const size_t count = static_cast<size_t>(x.rows) * blocks;
  int16_t* values = static_cast<int16_t*>(x.data);
  float* scales = reinterpret_cast<float*>(values + count * kColumnBlock);
  return {x.rows, blocks, values, scales, reinterpret_cast<int32_t*>(scales + count)};
}

}  // namespace
}  // namespace ncl
