// The weight layout N16K4, as C++ sees it. kernels/layout.py says the same in PyTorch,
// docs/reference/format.md in words.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ncl {

constexpr int kRowTile = 16;      // output rows that lie together in the weights
constexpr int kColumnBlock = 32;  // columns of a block of codes; weights are padded to it

enum class WeightType { kInt4, kInt8, kFp32, kBf16, kFp16 };
enum class FloatType { kFp32, kBf16, kFp16 };

inline bool is_packed(WeightType type) {
  return type == WeightType::kInt4 || type == WeightType::kInt8;
}

// Bytes of one block of 32 columns by 16 rows.
constexpr int block_bytes(WeightType type) { return type == WeightType::kInt4 ? 256 : 512; }

// A weight matrix, packed (int4, int8) or row-major (fp32, bf16, fp16). It owns nothing.
struct Matrix {
  WeightType type;
  int rows;
  int cols;
  const uint8_t* data;
  // Packed only. A weight is scale * (code - zero); scales and zeros are [row tile][group][16].
  const void* scales = nullptr;
  FloatType scale_type = FloatType::kFp32;
  const int8_t* zeros = nullptr;  // null: the symmetric zero, 8 for int4 and 0 for int8
  int blocks_per_group = 1;       // of 32 columns
  const float* bias = nullptr;    // [rows] or null

  int row_tiles() const { return (rows + kRowTile - 1) / kRowTile; }
  int blocks() const { return (cols + kColumnBlock - 1) / kColumnBlock; }
  int groups() const { return (blocks() + blocks_per_group - 1) / blocks_per_group; }
};

}  // namespace ncl
