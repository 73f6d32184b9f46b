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

// Rounds a finite value to a stored type, to nearest even as PyTorch does: what can be read again.
inline float store_float(float value, FloatType type, void* target, size_t index) {
  if (type == FloatType::kFp32) return static_cast<float*>(target)[index] = value;
  uint16_t half;
  if (type == FloatType::kBf16) {
    half = float_to_bf16(value);
  } else {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size < 0x38800000) {  // 2^-14: below it fp16 has steps of 2^-24
      half = static_cast<uint16_t>(round_even(std::fabs(value) * 0x1p24f));
    } else if (size < 0x477ff000) {  // 65520, the first that becomes infinite
      half = static_cast<uint16_t>(((size + 0xfff + (size >> 13 & 1)) >> 13) - (112 << 10));
    } else {
      half = 0x7c00;
    }
    half = static_cast<uint16_t>(half | sign);
  }
  static_cast<uint16_t*>(target)[index] = half;
  return type == FloatType::kBf16 ? bf16_to_float(half) : fp16_to_float(half);
}

// The same for a scale. False when it overflows or is subnormal: the caller leaves those to
// quantization/rtn.py.
inline bool store_scale(float wanted, FloatType type, void* scales, size_t index, float* stored) {
  const float smallest = type == FloatType::kFp16 ? 0x1p-14f : std::numeric_limits<float>::min();
  *stored = store_float(wanted, type, scales, index);
  return wanted == 0 || (std::isfinite(*stored) && std::fabs(wanted) >= smallest);
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

// A zero among the codes as "asym" has it, or as the minimum that "affine8" has for it.
inline int8_t byte_of_zero(Scheme scheme, float zero) {
  return static_cast<int8_t>(scheme == Scheme::kAffine8 ? 8 * (8 - zero) : zero);
}

inline void improve(const Rounding& op, const RoundedGroups& plain) {
  Groups groups = {plain.weights, plain.count, Lanes{}};
  Lanes low = groups.column(0), high = low;
  for (int i = 0; i < plain.count; ++i) {
    const Lanes column = groups.column(i);
    groups.sum += column;
    low = at_most(low, column);
    high = at_least(high, column);
  }
  const Fit found = search_groups(groups, low, high, op.scheme);
  const Lanes before = groups.squared_error(plain.levels, plain.scale, plain.zero - 8.0f);
  float scales[kLanes], minima[kLanes];  // room for any type
  Lanes stored = {}, zero = found.zero;
  LaneMask good = {};
  for (int row = 0; row < plain.rows; ++row) {
    float scale = 0;
    good[row] = found.scale[row] != 0 && plain.scale[row] > 0 &&
                store_scale(found.scale[row], op.scale_type, scales + row, 0, &scale);
    stored[row] = scale;
    if (op.scheme == Scheme::kAffine) {
      const float minimum =
          store_float(-(found.zero[row] + 8.0f) * found.scale[row], op.scale_type, minima + row, 0);
      zero[row] = -minimum / scale - 8.0f;
      good[row] = good[row] && std::isfinite(minimum);
    }
  }
  const Lanes inverse = 1.0f / stored;
  for (int i = 0; i < plain.count; ++i) {
    const Lanes level = level_of(groups.column(i) * inverse + zero);
    std::memcpy(plain.levels + i * kLanes, &level, sizeof level);
  }
  LaneMask better = groups.squared_error(plain.levels, stored, zero) < before;
  const size_t size = op.scale_type == FloatType::kFp32 ? 4 : 2;
  const auto put = [&](void* target, int row, const float* value) {
    std::memcpy(static_cast<char*>(target) + plain.at[row] * size, value + row, size);
  };
  for (int row = 0; row < plain.rows; ++row) {
    if (!good[row] || !better[row]) continue;
    for (int i = 0; i < plain.count; ++i) {
      plain.codes[row][i] =
          static_cast<int8_t>(static_cast<int>(plain.levels[i * kLanes + row]) + 8);
    }
    put(op.scales, row, scales);
    if (op.scheme == Scheme::kAffine) {
      put(op.beside, row, minima);
    } else if (op.beside) {
      static_cast<int8_t*>(op.beside)[plain.at[row]] = byte_of_zero(op.scheme, zero[row] + 8);
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

// The codes of one group of a row, rounded plainly, and what is stored beside them at `at`. False:
// a weight is not finite, or what is stored cannot hold it.
inline bool round_group(const Rounding& op, const float* weights, int count, size_t at,
                        int8_t* codes, float* scale, float* zero) {
  const bool affine = op.scheme == Scheme::kAffine;
  float low = affine ? weights[0] : 0, high = low, not_finite = 0;
  for (int i = 0; i < count; ++i) {
    low = weights[i] < low ? weights[i] : low;
    high = weights[i] > high ? weights[i] : high;
    not_finite += weights[i] * 0.0f;  // NaN for NaN and infinity
  }
  if (not_finite != 0) return false;
  const float range = op.scheme == Scheme::kSym ? std::max(high, -low) : high - low;
  if (!store_scale(range / op.steps, op.scale_type, op.scales, at, scale)) return false;
  if (*scale == 0 && range > 0) return false;  // the quotient itself underflowed
  const float divisor = *scale > 0 ? *scale : std::numeric_limits<float>::infinity();
  float least = op.lowest, most = op.highest, minimum = 0;
  float added = static_cast<float>(op.symmetric_zero);
  if (affine) {
    minimum = store_float(low - op.lowest * *scale + 0.0f, op.scale_type, op.beside, at);
    if (!std::isfinite(minimum)) return false;
    if (*scale > 0) added = 0;
    *zero = -minimum / *scale;
  } else if (op.beside) {
    if (*scale > 0) added = std::clamp(round_even(op.lowest - low / divisor), least, most);
    static_cast<int8_t*>(op.beside)[at] = byte_of_zero(op.scheme, added);
    *zero = added;
  } else {
    least += added, most += added;
    *zero = added;
  }
  for (int i = 0; i < count; ++i) {
    const float code = round_even((weights[i] - minimum) / divisor) + added;
    codes[i] = static_cast<int8_t>(static_cast<int>(std::min(std::max(code, least), most)));
  }
  return true;
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
        int8_t* target = codes + static_cast<size_t>(row) * columns + first;
        float scale, zero;
        if (!round_group(op, weights, count, at, target, &scale, &zero)) return false;
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
