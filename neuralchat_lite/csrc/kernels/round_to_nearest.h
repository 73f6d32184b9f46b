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

// One group of up to eight neighbouring rows, rounded plainly. Takes what a search finds where the
// error is smaller.
struct RoundedGroups {
  int rows, count;
  float* weights;  // [count][kLanes]
  float* levels;   // the same, for the levels of plain rounding and then of the search
  Lanes scale, zero;
  size_t at[kLanes];      // of scales and zeros
  int8_t* codes[kLanes];  // [count] each
};

inline void improve(const Rounding& op, const RoundedGroups& plain) {
  Groups groups = {plain.weights, plain.count, Lanes{}};
  Lanes low = groups.column(0), high = low;
  for (int i = 0; i < plain.count; ++i) {
    const Lanes column = groups.column(i);
    groups.sum += column;
    low = at_most(low, column);
    high = at_least(high, column);
  }
  const Fit found = search_groups(groups, low, high,
                                  !op.zeros    ? SearchedZero::kNone
                                  : op.eighths ? SearchedZero::kEighths
                                               : SearchedZero::kWhole);
  const Lanes before = groups.squared_error(plain.levels, plain.scale, plain.zero - 8.0f);
  float bits[kLanes];  // room for any type
  Lanes stored = {};
  LaneMask good = {};
  for (int row = 0; row < plain.rows; ++row) {
    const float wanted = found.scale[row];
    float exact = 0;
    good[row] = wanted != 0 && plain.scale[row] > 0 &&
                store_scale(std::fabs(wanted), op.scale_type, bits + row, 0, &exact);
    stored[row] = std::copysign(exact, wanted);
  }
  const Lanes inverse = 1.0f / stored;
  for (int i = 0; i < plain.count; ++i) {
    const Lanes level = level_of(groups.column(i) * inverse + found.zero);
    std::memcpy(plain.levels + i * kLanes, &level, sizeof level);
  }
  good &= groups.squared_error(plain.levels, stored, found.zero) < before;
  const int size = op.scale_type == FloatType::kFp32 ? 4 : 2;
  for (int row = 0; row < plain.rows; ++row) {
    if (!good[row]) continue;
    for (int i = 0; i < plain.count; ++i) {
      plain.codes[row][i] =
          static_cast<int8_t>(static_cast<int>(plain.levels[i * kLanes + row]) + 8);
    }
    char* target = static_cast<char*>(op.scales) + plain.at[row] * size;
    std::memcpy(target, bits + row, size);
    if (stored[row] < 0) target[size - 1] = static_cast<char>(target[size - 1] | 0x80);
    if (op.zeros) {
      const float zero = found.zero[row];
      op.zeros[plain.at[row]] = static_cast<int8_t>(op.eighths ? -8 * zero : zero + 8);
    }
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
         (op.search ? 2 * scratch_bytes<float>(static_cast<size_t>(op.group_size) * kLanes) : 0);
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
  RoundedGroups group_of = {};
  if (op.search) {
    const size_t all = static_cast<size_t>(op.group_size) * kLanes;
    group_of.weights = take<float>(scratch, all);
    group_of.levels = take<float>(scratch, all);
    std::fill_n(group_of.weights, all, 0.0f);  // lanes without a row
  }
  for (int step = 0; step < rows; step += kLanes) {
    for (int group = 0; group < groups; ++group) {
      for (int row = step; row < std::min(rows, step + kLanes); ++row) {
        const int first = group * op.group_size, count = std::min(op.group_size, op.cols - first);
        const size_t at = (static_cast<size_t>(tile) * groups + group) * kRowTile + row;
        read(op.weights, op.weight_type,
             static_cast<size_t>(tile * kRowTile + row) * op.cols + first, count, weights);
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
        if (op.search) {
          const int lane = row % kLanes;
          for (int i = 0; i < count; ++i) {
            group_of.weights[i * kLanes + lane] = weights[i];
            group_of.levels[i * kLanes + lane] = static_cast<float>(target[i] - 8);
          }
          group_of.scale[lane] = scale;
          group_of.zero[lane] = zero;
          group_of.at[lane] = at;
          group_of.codes[lane] = target;
          group_of.rows = lane + 1;
          group_of.count = count;
          if (lane == kLanes - 1 || row == rows - 1) improve(op, group_of);
        }
      }
    }
  }
  pack_tile(codes, columns, op.type,
            op.codes + static_cast<size_t>(tile) * (columns / kColumnBlock) * block_bytes(op.type));
  return true;
}

}  // namespace
}  // namespace ncl
