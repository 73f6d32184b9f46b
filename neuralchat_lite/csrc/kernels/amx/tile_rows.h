// Activations as the products of tiles take them: 16 rows of one block of 32 columns lie together.
//
// Compute in int8 has one plane of signed bytes. Compute in bf16 has 16-bit integers in two planes:
// the upper bytes, signed, and the lower ones, unsigned, so that an activation is 256 * upper +
// lower. Rows are padded to 16 with zeros.
#pragma once

#include "kernels/activation_block.h"
#include "kernels/kernels.h"

namespace ncl {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = kTileRows * kColumnBlock;  // of activations, in one plane

struct TileRows {
  int rows;
  int blocks;
  int planes;
  uint8_t* values;  // [rows / 16][blocks][planes][16][32]
  float* scales;    // [rows / 16][blocks][16]; NaN where the block held a NaN or infinity
  int32_t* sums;    // [rows / 16][blocks][planes][16], of the values, in the lower 16 bits

  int row_tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  // Of 16 rows in one block of columns.
  uint8_t* tile_values(int row_tile, int block) const {
    return values + (static_cast<size_t>(row_tile) * blocks + block) * planes * kTileBytes;
  }
  float* tile_scales(int row_tile, int block) const {
    return scales + (static_cast<size_t>(row_tile) * blocks + block) * kTileRows;
  }
  int32_t* tile_sums(int row_tile, int block) const {
    return sums + (static_cast<size_t>(row_tile) * blocks + block) * planes * kTileRows;
  }
};

[[maybe_unused]] inline TileRows tile_rows(const Activations& x) {
  TileRows made{.rows = x.rows,
                .blocks = blocks_of(x.cols),
                .planes = x.type == ComputeType::kInt8 ? 1 : 2,
                .values = static_cast<uint8_t*>(x.data),
                .scales = nullptr,
                .sums = nullptr};
  const size_t tiles = static_cast<size_t>(made.row_tiles()) * made.blocks;
  made.scales = reinterpret_cast<float*>(made.values + tiles * made.planes * kTileBytes);
  made.sums = reinterpret_cast<int32_t*>(made.scales + tiles * kTileRows);
  return made;
}

[[maybe_unused]] inline size_t tile_rows_bytes(int rows, int cols, ComputeType type) {
  const TileRows x = tile_rows({rows, cols, type, nullptr});
  const size_t row = x.planes * (kColumnBlock + sizeof(int32_t)) + sizeof(float);
  return static_cast<size_t>(x.row_tiles()) * kTileRows * x.blocks * row;
}

}  // namespace
}  // namespace ncl
