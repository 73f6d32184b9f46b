// AVX2's activations for compute in bf16: rows of bytes in two planes, which int4 codes are
// multiplied with, and the same integers in 16 bits, which int8 codes are.
#pragma once

#include "kernels/eight_bit_rows.h"

namespace ncl {
namespace {

[[maybe_unused]] inline size_t wide_rows_bytes(int rows, int cols) {
  const size_t values = static_cast<size_t>(rows) * blocks_of(cols) * kColumnBlock;
  return byte_rows_bytes<2>(rows, cols) + values * sizeof(int16_t);
}

// The integers of a row, [blocks * 32] in their order.
[[maybe_unused]] inline int16_t* wide_row(const Activations& x, int row) {
  auto* begin = static_cast<uint8_t*>(x.data) + byte_rows_bytes<2>(x.rows, x.cols);
  return reinterpret_cast<int16_t*>(begin) +
         static_cast<size_t>(row) * blocks_of(x.cols) * kColumnBlock;
}

}  // namespace
}  // namespace ncl
