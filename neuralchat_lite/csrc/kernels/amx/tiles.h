// The tile registers of a thread.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace ncl {
namespace {

// Intel SDM volume 1, chapter 18: what _tile_loadconfig reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};  // of each tile; there are eight
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// The tile registers of this thread for the time of one call. Other libraries use them too, and
// leave them released: the thread that calls us may just have multiplied in PyTorch. A
// configuration that is made once would be gone.
struct ConfiguredTiles {
  explicit ConfiguredTiles(const TileConfig& config) { _tile_loadconfig(&config); }
  ~ConfiguredTiles() { _tile_release(); }
  ConfiguredTiles(const ConfiguredTiles&) = delete;
};

}  // namespace
}  // namespace ncl
