// Scalar pieces that every instruction set needs for its remainders. In an anonymous namespace:
// each file compiles its own copy with its own flags, so that the linker can never pick one that
// was compiled for another instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

namespace ncl {
namespace {

[[maybe_unused]] inline float bf16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// Round to nearest even; NaN stays NaN.
[[maybe_unused]] inline uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

[[maybe_unused]] inline float fp16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1f, mantissa = half & 0x3ff;
  float value;
  if (exponent == 0) {
    value = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -value : value;
  }
  const uint32_t bits =
      sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (mantissa << 13);
  std::memcpy(&value, &bits, 4);
  return value;
}

[[maybe_unused]] inline float load_float(const void* data, FloatType type, size_t index) {
  switch (type) {
    case FloatType::kFp32:
      return static_cast<const float*>(data)[index];
    case FloatType::kBf16:
      return bf16_to_float(static_cast<const uint16_t*>(data)[index]);
    case FloatType::kFp16:
      break;
  }
  return fp16_to_float(static_cast<const uint16_t*>(data)[index]);
}

// An element of keys or values, without its scale.
template <KVType type>
[[maybe_unused]] inline float element(const void* data, size_t index) {
  if constexpr (type == KVType::kInt8) {
    return static_cast<const int8_t*>(data)[index];
  } else {
    return load_float(data, type == KVType::kFp32 ? FloatType::kFp32 : FloatType::kBf16, index);
  }
}

// The codes of a block of 32 columns of one row tile.
[[maybe_unused]] inline const uint8_t* block_codes(const Matrix& m, int tile, int block) {
  return m.data + (static_cast<size_t>(tile) * m.blocks() + block) * block_bytes(m.type);
}

// The index of the scales, zeros or minima of the 16 rows of a tile in a block.
[[maybe_unused]] inline size_t group_index(const Matrix& m, int tile, int block) {
  return (static_cast<size_t>(tile) * m.groups() + block / m.blocks_per_group) * kRowTile;
}

// The minimum of a group, given its scale; 0 without minima.
[[maybe_unused]] inline float group_minimum(const Matrix& m, size_t at, float scale) {
  if (!m.minima) return 0;
  if (!m.byte_minima) return load_float(m.minima, m.scale_type, at);
  return scale * (0.125f * static_cast<const int8_t*>(m.minima)[at] - 8.0f);
}

// code - zero of every weight in a block of 32 columns of one row tile, as out[column][row]. With
// minima, the code.
[[maybe_unused]] inline void unpack_block(const Matrix& m, int tile, int block,
                                          int out[kColumnBlock][kRowTile]) {
  const uint8_t* codes = block_codes(m, tile, block);
  const size_t group = group_index(m, tile, block);
  for (int column = 0; column < kColumnBlock; ++column) {
    for (int row = 0; row < kRowTile; ++row) {
      int code, zero;
      if (m.type == WeightType::kInt4) {
        const uint8_t byte = codes[column / 8 * 64 + row * 4 + column % 4];
        code = column % 8 < 4 ? byte & 0xf : byte >> 4;
        zero = 8;
      } else {
        code = static_cast<int8_t>(codes[column / 4 * 64 + row * 4 + column % 4]);
        zero = 0;
      }
      if (m.zeros) zero = m.zeros[group + row];
      out[column][row] = m.minima ? code : code - zero;
    }
  }
}

[[maybe_unused]] inline void store_output(const Matrix& m, const Output& out, int x_row,
                                          int row_begin, int row_count, const float* sums) {
  float* target = out.data + static_cast<size_t>(x_row) * out.stride + row_begin;
  if (!m.bias && !out.accumulate) {
    std::memcpy(target, sums, sizeof(float) * row_count);
    return;
  }
  for (int i = 0; i < row_count; ++i) {
    float value = sums[i] + (m.bias ? m.bias[row_begin + i] : 0.0f);
    target[i] = out.accumulate ? target[i] + value : value;
  }
}

}  // namespace
}  // namespace ncl
