// The weight layout N16K4 and the activation layout, as C++ sees them. kernels/layout.py says the
// same in PyTorch, docs/reference/format.md in words.
#pragma once

#include <cstdint>
#include <vector>

namespace ncl {

constexpr int kRowTile = 16;  // output rows that lie together in the weights
constexpr int kColumnBlock =
    32;                        // columns that share an activation scale; weights are padded to it
constexpr int kKeyBlock = 16;  // positions whose keys lie together in the cache

enum class WeightType { kInt4, kInt8, kFp32, kBf16, kFp16 };
enum class FloatType { kFp32, kBf16, kFp16 };

inline bool is_packed(WeightType type) {
  return type == WeightType::kInt4 || type == WeightType::kInt8;
}

// Bytes of one block of 32 columns by 16 rows.
inline int block_bytes(WeightType type) { return type == WeightType::kInt4 ? 256 : 512; }

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

// Rows of activations in 16 bits, one scale per block of 32 columns, for integer products.
// Within four columns the order is 0, 2, 1, 3: a 32-bit word of codes, masked at its even and at
// its odd bytes, then meets its columns as 16-bit pairs. Padded columns are zero.
struct IntegerRows {
  int rows = 0;
  int blocks = 0;
  std::vector<int16_t> values;  // [rows][blocks * 32]
  std::vector<float> scales;    // [rows][blocks]; NaN where the block held a NaN or infinity
  std::vector<int32_t> sums;    // [rows][blocks], of the values, to take zero points off

  void resize(int new_rows, int new_blocks) {
    rows = new_rows;
    blocks = new_blocks;
    const size_t count = static_cast<size_t>(rows) * blocks;
    if (values.size() < count * kColumnBlock) values.resize(count * kColumnBlock);
    if (scales.size() < count) scales.resize(count), sums.resize(count);
  }
  const int16_t* row_values(int row) const {
    return values.data() + static_cast<size_t>(row) * blocks * kColumnBlock;
  }
  const float* row_scales(int row) const {
    return scales.data() + static_cast<size_t>(row) * blocks;
  }
  const int32_t* row_sums(int row) const { return sums.data() + static_cast<size_t>(row) * blocks; }
};

// Float weights to quantize by rounding to nearest. The limits are those of quantization/rtn.py.
struct Rounding {
  const void* weights;  // [rows][cols]
  FloatType weight_type;
  int rows;
  int cols;
  int group_size;  // columns; all of them for one scale a row
  WeightType type;
  float lowest, highest;  // codes; when symmetric, before `symmetric_zero` is added
  float steps;            // the scale is the largest weight, or the range, divided by it
  int symmetric_zero;
  FloatType scale_type;
  uint8_t* codes;  // packed, all three
  void* scales;
  int8_t* zeros;  // null: symmetric
};

// Where a range of row tiles of a product goes: out[row of x * stride + output row].
struct Output {
  float* data;
  int stride;
  bool accumulate;
};

// Queries that share keys: the heads of one group at one or more positions.
struct AttentionTask {
  const float* const* queries;  // [count] pointers to [head_dim], rotated and scaled
  float* const* outputs;        // [count] pointers to [head_dim]
  const int* first;             // [count] first position that a query sees
  const int* last;              // [count] last position that it sees
  int count;
  int head_dim;
  const void* keys;    // [capacity / 16][head_dim][16]
  const void* values;  // [capacity][head_dim]
  FloatType cache_type;
  int capacity;
};

}  // namespace ncl
