// An activation format for products of 8-bit integers: one scale per block of 32 columns, and a
// block as one plane of bytes, or as two planes for integers of 16 bits. Columns lie in their
// order.
#pragma once

#include "kernels/activation_block.h"
#include "kernels/kernels.h"

namespace ncl {
namespace {

// An integer is the byte of the only plane, or that of the first one * 256 + that of the second.
template <int planes>
struct ByteRows {
  int rows;
  int blocks;
  int8_t* values;  // [rows][blocks][planes][32]
  float* scales;   // [rows][blocks]
  int32_t* sums;   // [rows][blocks], of the integers, to take zero points off

  int8_t* row_values(int row) const {
    return values + static_cast<size_t>(row) * blocks * planes * kColumnBlock;
  }
  float* row_scales(int row) const { return scales + static_cast<size_t>(row) * blocks; }
  int32_t* row_sums(int row) const { return sums + static_cast<size_t>(row) * blocks; }
};

using EightBitRows = ByteRows<1>;

template <int planes>
size_t byte_rows_bytes(int rows, int cols) {
  const size_t block = planes * kColumnBlock + sizeof(float) + sizeof(int32_t);
  return static_cast<size_t>(rows) * blocks_of(cols) * block;
}

template <int planes>
ByteRows<planes> byte_rows(const Activations& x) {
  const int blocks = blocks_of(x.cols);
  const size_t count = static_cast<size_t>(x.rows) * blocks;
  int8_t* values = static_cast<int8_t*>(x.data);
  float* scales = reinterpret_cast<float*>(values + count * planes * kColumnBlock);
  return {x.rows, blocks, values, scales, reinterpret_cast<int32_t*>(scales + count)};
}

[[maybe_unused]] inline size_t eight_bit_bytes(int rows, int cols) {
  return byte_rows_bytes<1>(rows, cols);
}
[[maybe_unused]] inline EightBitRows eight_bit_rows(const Activations& x) {
  return byte_rows<1>(x);
}

}  // namespace
}  // namespace ncl
