// The instructions of this set's products, in tile registers alone.

#include "kernels/amx/amx.h"
#include "kernels/amx/tiles.h"
#include "kernels/avx2/avx2.h"

namespace ncl::amx {
namespace {

// Whole tiles: 16 rows of activations and 64 columns, twice what a product with scales of 32
// columns fills.
constexpr TileConfig kWholeTiles = {.row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                    .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
constexpr uint64_t kOperations = 2 * 16 * 16 * 64;

// Those that the loops use.
inline void zero_tiles() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
}

uint64_t run_tdpbssd(uint64_t times) {
  const ConfiguredTiles tiles(kWholeTiles);
  zero_tiles();
  const uint64_t loops = (times + 3) / 4;
  for (uint64_t loop = 0; loop < loops; ++loop) {
    _tile_dpbssd(0, 4, 5);
    _tile_dpbssd(1, 4, 5);
    _tile_dpbssd(2, 4, 5);
    _tile_dpbssd(3, 4, 5);
  }
  return loops * 4 * kOperations;
}

// Two products of bytes for one of 16 bits.
uint64_t run_two_planes(uint64_t times) {
  const ConfiguredTiles tiles(kWholeTiles);
  zero_tiles();
  const uint64_t loops = (times + 1) / 2;
  for (uint64_t loop = 0; loop < loops; ++loop) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbusd(1, 5, 6);
    _tile_dpbssd(2, 4, 6);
    _tile_dpbusd(3, 5, 6);
  }
  return loops * 2 * kOperations;
}

constexpr Instruction kEightBits = {"amx", "tdpbssd", run_tdpbssd};
constexpr Instruction kSixteenBits = {"amx", "tdpbssd + tdpbusd", run_two_planes};

}  // namespace

const Instruction& instruction(WeightType weights, ComputeType compute) {
  if (!is_packed(weights) || compute == ComputeType::kFp32) {
    return avx2::instruction(weights, compute);
  }
  return compute == ComputeType::kInt8 ? kEightBits : kSixteenBits;
}

}  // namespace ncl::amx
