// Quantizing by rounding to nearest, straight into packed tiles: quantization/rtn.py fused with
// kernels/layout.py's packing, to the same bits. Plain loops that a compiler vectorizes; in an
// anonymous namespace like scalar.h, as each instruction set compiles its own copy.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/kernels.h"
#include "kernels/scalar.h"
#include "kernels/search.h"

namespace ncl {
namespace {

// Rounds a positive scale to its stored type. False when it overflows or is subnormal: the
// caller leaves those to quantization/rtn.py.
inline bool store_scale(float wanted, FloatType type, void* scales, size_t index, float* stored) {
  if (type == FloatType::kFp32) {
    static_cast<float*>(scales)[index] = *stored = wanted;
    return wanted == 0 || (std::isfinite(wanted) && wanted >= std::numeric_limits<float>::min());
  }
  uint16_t half;
  bool normal;
  if (type == FloatType::kBf16) {
    half = float_to_bf16(wanted);
    *stored = bf16_to_float(half);
    normal = std::isfinite(*stored) && wanted >= std::numeric_limits<float>::min();
  } else {
    uint32_t bits;
    std::memcpy(&bits, &wanted, 4);
    bits += 0xfff + (bits >> 13 & 1);  // to nearest even at bit 13
    normal = std::isfinite(wanted) && wanted >= 0x1p-14f && bits < 0x47800000u;  // 2^16
    half = normal ? static_cast<uint16_t>((bits >> 13) - (112 << 10)) : 0;
    *stored = normal ? fp16_to_float(half) : 0;
  }
  static_cast<uint16_t*>(scales)[index] = half;
  return normal || wanted == 0;
}

// Takes what a search finds for a group that was rounded plainly, if the error is smaller.
inline void improve_group(const Rounding& op, size_t at, const float* weights, int count, float low,
                          float high, float scale, float zero, int8_t* codes, int8_t* others) {
  float lanes[kLanes] = {};
  in_lanes(count, [&](int i, int lane) { lanes[lane] += weights[i]; });
  const Group group = {weights, count, sum_of(lanes)};
  const Fit found = search_group(group, low, high,
                                 !op.zeros    ? SearchedZero::kNone
                                 : op.eighths ? SearchedZero::kEighths
                                              : SearchedZero::kWhole);
  float stored, bits;  // room for any type
  if (found.scale == 0 || !store_scale(std::fabs(found.scale), op.scale_type, &bits, 0, &stored)) {
    return;
  }
  stored = std::copysign(stored, found.scale);
  const float inverse = 1 / stored;
  for (int i = 0; i < count; ++i) {
    others[i] =
        static_cast<int8_t>(static_cast<int>(level_of(weights[i] * inverse + found.zero)) + 8);
  }
  if (!(group.squared_error(others, stored, found.zero) <
        group.squared_error(codes, scale, zero - 8))) {
    return;
  }
  std::memcpy(codes, others, count);
  const int size = op.scale_type == FloatType::kFp32 ? 4 : 2;
  char* target = static_cast<char*>(op.scales) + at * size;
  std::memcpy(target, &bits, size);
  if (std::signbit(found.scale)) target[size - 1] = static_cast<char>(target[size - 1] | 0x80);
  if (op.zeros) {
    op.zeros[at] = static_cast<int8_t>(op.eighths ? -8 * found.zero : found.zero + 8);
  }
}

// Packs codes [16][columns] of one row tile.
inline void pack_tile(const int8_t* codes, int columns, WeightType type, uint8_t* packed) {
  const int step = type == WeightType::kInt4 ? 8 : 4;
  for (int column = 0; column < columns; column += step) {
    for (int row = 0; row < kRowTile; ++row, packed += 4) {
      uint32_t word, high;
      std::memcpy(&word, codes + static_cast<size_t>(row) * columns + column, 4);
      if (type == WeightType::kInt4) {
        std::memcpy(&high, codes + static_cast<size_t>(row) * columns + column + 4, 4);
        word |= high << 4;
      }
      std::memcpy(packed, &word, 4);
    }
  }
}

inline int padded_columns(const Rounding& op) {
  return (op.cols + kColumnBlock - 1) / kColumnBlock * kColumnBlock;
}

inline size_t tile_codes(const Rounding& op) {
  return static_cast<size_t>(kRowTile) * padded_columns(op);
}

// Bytes of scratch memory that `round_one_tile` needs.
inline size_t rounding_scratch(const Rounding& op) {
  return scratch_bytes<int8_t>(tile_codes(op)) + scratch_bytes<float>(op.group_size) +
         scratch_bytes<int8_t>(op.group_size);
}

// `read(data, type, index, count, out)` turns stored weights into floats.
template <class Read>
bool round_one_tile(const Rounding& op, int tile, Scratch scratch, Read&& read) {
  const int columns = padded_columns(op);
  const int groups = (op.cols + op.group_size - 1) / op.group_size;
  const int rows = std::min(kRowTile, op.rows - tile * kRowTile);
  int8_t* codes = take<int8_t>(scratch, tile_codes(op));
  std::fill_n(codes, tile_codes(op), static_cast<int8_t>(op.symmetric_zero));
  float* weights = take<float>(scratch, op.group_size);
  int8_t* others = take<int8_t>(scratch, op.group_size);
  for (int row = 0; row < rows; ++row) {
    for (int group = 0; group < groups; ++group) {
      const int first = group * op.group_size, count = std::min(op.group_size, op.cols - first);
      const size_t at = (static_cast<size_t>(tile) * groups + group) * kRowTile + row;
      read(op.weights, op.weight_type, static_cast<size_t>(tile * kRowTile + row) * op.cols + first,
           count, weights);
      float low = 0, high = 0, not_finite = 0;  // of a range with 0 in it
      for (int i = 0; i < count; ++i) {
        low = weights[i] < low ? weights[i] : low;
        high = weights[i] > high ? weights[i] : high;
        not_finite += weights[i] * 0.0f;  // NaN for NaN and infinity
      }
      if (not_finite != 0) return false;
      const float range = op.zeros ? high - low : std::max(high, -low);
      float scale;
      if (!store_scale(range / op.steps, op.scale_type, op.scales, at, &scale)) return false;
      if (scale == 0 && range > 0) return false;  // the quotient itself underflowed
      const float divisor = scale > 0 ? scale : std::numeric_limits<float>::infinity();
      float zero = static_cast<float>(op.symmetric_zero), least = op.lowest, most = op.highest;
      if (op.zeros) {
        if (scale > 0) zero = std::clamp(round_even(op.lowest - low / divisor), least, most);
        op.zeros[at] = static_cast<int8_t>(op.eighths ? 8 * (8 - zero) : zero);
      } else {
        least += zero, most += zero;
      }
      int8_t* target = codes + static_cast<size_t>(row) * columns + first;
      for (int i = 0; i < count; ++i) {
        const float code = round_even(weights[i] / divisor) + zero;
        target[i] = static_cast<int8_t>(static_cast<int>(std::min(std::max(code, least), most)));
      }
      if (op.search && scale > 0) {
        float lows[kLanes], highs[kLanes];
        std::fill_n(lows, kLanes, weights[0]);
        std::fill_n(highs, kLanes, weights[0]);
        in_lanes(count, [&](int i, int lane) {
          lows[lane] = std::min(lows[lane], weights[i]);
          highs[lane] = std::max(highs[lane], weights[i]);
        });
        low = *std::min_element(lows, lows + kLanes);
        high = *std::max_element(highs, highs + kLanes);
        improve_group(op, at, weights, count, low, high, scale, zero, target, others);
      }
    }
  }
  pack_tile(codes, columns, op.type,
            op.codes + static_cast<size_t>(tile) * (columns / kColumnBlock) * block_bytes(op.type));
  return true;
}

}  // namespace
}  // namespace ncl
