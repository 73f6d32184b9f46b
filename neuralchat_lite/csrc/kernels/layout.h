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

// What a packed weight is, beside its scale: scale * (code - zero) with the zero of its type, 8 for
// int4 and 0 for int8; the same with a zero of its group; or scale * code + a minimum of its group,
// which is a float or, for int4 alone, a byte: scale * (byte / 8 - 8).
enum class Scheme { kSym, kAsym, kAffine, kAffine8 };

constexpr bool has_minima(Scheme scheme) {
  return scheme == Scheme::kAffine || scheme == Scheme::kAffine8;
}

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
  // Packed only. Scales, zeros and minima are [row tile][group][16]; at most one of the latter two.
  const void* scales = nullptr;
  FloatType scale_type = FloatType::kFp32;
  const int8_t* zeros = nullptr;
  const void* minima = nullptr;  // of scale_type, or bytes
  int blocks_per_group = 1;      // of 32 columns
  const float* bias = nullptr;   // [rows] or null
  bool byte_minima = false;

  Scheme scheme() const {
    if (minima) return byte_minima ? Scheme::kAffine8 : Scheme::kAffine;
    return zeros ? Scheme::kAsym : Scheme::kSym;
  }

  int row_tiles() const { return (rows + kRowTile - 1) / kRowTile; }
  int blocks() const { return (cols + kColumnBlock - 1) / kColumnBlock; }
  int groups() const { return (blocks() + blocks_per_group - 1) / blocks_per_group; }
};

}  // namespace ncl
