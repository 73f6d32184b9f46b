// Activations in tiles: see tile_rows.h.

#include <immintrin.h>

#include <cstring>

#include "kernels/amx/amx.h"
#include "kernels/amx/tile_rows.h"
#include "kernels/avx2/avx2.h"
#include "kernels/avx512_vnni/avx512_vnni.h"
#include "kernels/avx512_vnni/quantized_block.h"

namespace ncl::amx {
namespace {

// The lowest byte of each of 32 integers.
inline void store_bytes(uint8_t* to, const __m512i integers[2]) {
  for (int k = 0; k < 2; ++k) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16 * k), _mm512_cvtepi32_epi8(integers[k]));
  }
}

// One plane of one row in one block.
inline void write_plane(const TileRows& to, int row, int block, int plane, const __m512i bytes[2],
                        int32_t sum) {
  const int tile = row / kTileRows, line = row % kTileRows;
  store_bytes(to.tile_values(tile, block) + plane * kTileBytes + line * kColumnBlock, bytes);
  to.tile_sums(tile, block)[plane * kTileRows + line] = sum & 0xffff;
}

void write_block(const QuantizedBlock& found, const TileRows& to, int row, int block) {
  to.tile_scales(row / kTileRows, block)[row % kTileRows] = found.scale;
  if (to.planes == 1) {
    write_plane(to, row, block, 0, found.integers, sum_of(found.integers));
    return;
  }
  __m512i upper[2], lower[2];
  for (int k = 0; k < 2; ++k) {
    upper[k] = _mm512_srai_epi32(found.integers[k], 8);
    lower[k] = _mm512_and_si512(found.integers[k], _mm512_set1_epi32(0xff));
  }
  write_plane(to, row, block, 0, upper, sum_of(upper));
  write_plane(to, row, block, 1, lower, sum_of(lower));
}

}  // namespace

size_t activation_bytes(int rows, int cols, ComputeType type) {
  if (rows < kLeastRows || type == ComputeType::kFp32) {
    return avx2::byte_rows_size(rows, cols, type);
  }
  return tile_rows_bytes(rows, cols, type);
}

void write_activation_row(const float* x, const Activations& out, int row) {
  if (out.rows < kLeastRows) {
    avx512_vnni::write_activation_row(x, out, row);
    return;
  }
  const TileRows to = tile_rows(out);
  const int limit = largest_integer(out.type);
  for (int block = 0; block < to.blocks; ++block) {
    const int begin = block * kColumnBlock;
    write_block(quantized_block(x + begin, out.cols - begin, limit), to, row, block);
  }
  if (row != out.rows - 1) return;
  // Who writes the last row writes the padding, too.
  const QuantizedBlock zero = {{_mm512_setzero_si512(), _mm512_setzero_si512()}, 0.0f};
  for (int padding = out.rows; padding % kTileRows; ++padding) {
    for (int block = 0; block < to.blocks; ++block) write_block(zero, to, padding, block);
  }
}

}  // namespace ncl::amx
