// AMX without AMX: the tile instructions of AMX-TILE and AMX-INT8 behind the names of their
// intrinsics, in plain loops, from the instructions' descriptions in Intel's Software Developer's
// Manual, volume 2. What makes a processor raise an exception ends the program with a message.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace proof {

constexpr int kTiles = 8, kMostRows = 16, kMostBytes = 64;

// The memory operand of LDTILECFG.
struct TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t bytes_per_row[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

struct TileState {
  bool configured = false;
  int rows[kTiles] = {}, bytes[kTiles] = {};
  unsigned char data[kTiles][kMostRows][kMostBytes] = {};
};
inline thread_local TileState tiles;  // registers belong to a thread

inline void require(bool met, const char* instruction, const char* rule) {
  if (met) return;
  std::printf("%s: %s\n", instruction, rule);
  std::fflush(stdout);
  std::abort();
}

inline void load_config(const void* from) {
  TileConfig c;
  std::memcpy(&c, from, sizeof c);
  tiles = TileState{};
  if (c.palette == 0) return;  // the same as a release
  require(c.palette == 1, "ldtilecfg", "the palette is 0 or 1");
  require(c.start_row == 0, "ldtilecfg", "start_row is 0 but after a fault");
  for (const uint8_t byte : c.reserved) require(byte == 0, "ldtilecfg", "reserved bytes are 0");
  for (int t = 0; t < 16; ++t) {
    const int rows = c.rows[t], bytes = c.bytes_per_row[t];
    if (t >= kTiles) {
      require(rows == 0 && bytes == 0, "ldtilecfg", "palette 1 has 8 tiles");
      continue;
    }
    require(rows <= kMostRows, "ldtilecfg", "a tile has at most 16 rows");
    require(bytes <= kMostBytes, "ldtilecfg", "a row has at most 64 bytes");
    require((rows == 0) == (bytes == 0), "ldtilecfg", "a tile has both rows and bytes, or neither");
    tiles.rows[t] = rows;
    tiles.bytes[t] = bytes;
  }
  tiles.configured = true;
}

inline void require_tile(int t, const char* instruction) {
  require(t >= 0 && t < kTiles, instruction, "tiles are numbered 0 to 7");
  require(tiles.configured, instruction, "the tiles are not configured");
  require(tiles.rows[t] > 0, instruction, "this tile is not configured");
}

inline void zero_tile(int t) {
  require_tile(t, "tilezero");
  std::memset(tiles.data[t], 0, sizeof tiles.data[t]);
}

inline void load_tile(int t, const void* from, long stride) {
  require_tile(t, "tileloadd");
  std::memset(tiles.data[t], 0, sizeof tiles.data[t]);
  for (int row = 0; row < tiles.rows[t]; ++row) {
    std::memcpy(tiles.data[t][row], static_cast<const char*>(from) + row * stride, tiles.bytes[t]);
  }
}

inline void store_tile(int t, void* to, long stride) {
  require_tile(t, "tilestored");
  for (int row = 0; row < tiles.rows[t]; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, tiles.data[t][row], tiles.bytes[t]);
  }
}

// sums[m][n] += the products of bytes 4k .. 4k + 3 of row m of `a` with those of 32-bit word n in
// row k of `b`, for all k.
template <class A, class B>
inline void multiply_tiles(const char* instruction, int sums, int a, int b) {
  for (const int t : {sums, a, b}) require_tile(t, instruction);
  require(sums != a && sums != b && a != b, instruction, "the three tiles differ");
  require(tiles.bytes[sums] % 4 == 0 && tiles.bytes[a] % 4 == 0 && tiles.bytes[b] % 4 == 0,
          instruction, "rows are whole 32-bit words");
  require(tiles.rows[sums] == tiles.rows[a], instruction, "sums have as many rows as a");
  require(tiles.bytes[sums] == tiles.bytes[b], instruction, "sums have rows as long as b's");
  require(tiles.bytes[a] / 4 == tiles.rows[b], instruction, "b has a row for each word of a's");
  for (int m = 0; m < tiles.rows[a]; ++m) {
    for (int n = 0; n < tiles.bytes[b] / 4; ++n) {
      unsigned char* const word = tiles.data[sums][m] + 4 * n;
      uint32_t sum;
      std::memcpy(&sum, word, 4);
      for (int k = 0; k < tiles.rows[b]; ++k) {
        for (int i = 0; i < 4; ++i) {
          const int x = static_cast<A>(tiles.data[a][m][4 * k + i]);
          sum += static_cast<uint32_t>(x * static_cast<B>(tiles.data[b][k][4 * n + i]));
        }
      }
      std::memcpy(word, &sum, 4);
    }
  }
}

}  // namespace proof

// clang-format off
#define _tile_loadconfig(from) proof::load_config(from)
#define _tile_release() (proof::tiles = proof::TileState{})
#undef _tile_loadd
#define _tile_loadd(tile, from, stride) proof::load_tile(tile, from, stride)
#undef _tile_stream_loadd
#define _tile_stream_loadd(tile, from, stride) proof::load_tile(tile, from, stride)
#undef _tile_stored
#define _tile_stored(tile, to, stride) proof::store_tile(tile, to, stride)
#undef _tile_zero
#define _tile_zero(tile) proof::zero_tile(tile)
#undef _tile_dpbssd
#define _tile_dpbssd(sums, a, b) proof::multiply_tiles<int8_t, int8_t>("tdpbssd", sums, a, b)
#undef _tile_dpbsud
#define _tile_dpbsud(sums, a, b) proof::multiply_tiles<int8_t, uint8_t>("tdpbsud", sums, a, b)
#undef _tile_dpbusd
#define _tile_dpbusd(sums, a, b) proof::multiply_tiles<uint8_t, int8_t>("tdpbusd", sums, a, b)
#undef _tile_dpbuud
#define _tile_dpbuud(sums, a, b) proof::multiply_tiles<uint8_t, uint8_t>("tdpbuud", sums, a, b)
// clang-format on
