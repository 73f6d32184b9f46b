// Packed weights times integer activations by products of tiles, which add up bytes: [16 rows of
// activations][32 columns] times [32 columns][16 output rows].
//
// The layout of 8-bit codes is that of a tile of weights: 8 lines of 64 bytes, each with four
// columns of 16 output rows. 4-bit codes are unpacked to the same, once for many rows of
// activations. A product covers one block of 32 columns, half of what a tile could hold, as each
// block has activation scales of its own. 16-bit activations are two products: see tile_rows.h.

#include <immintrin.h>

#include <algorithm>
#include <utility>

#include "kernels/amx/amx.h"
#include "kernels/amx/tile_rows.h"
#include "kernels/amx/tiles.h"
#include "kernels/avx512_vnni/avx512_vnni.h"
#include "kernels/avx512_vnni/registers.h"
#include "kernels/dispatch.h"

namespace ncl::amx {
namespace {

constexpr int kLineBytes = 64;  // of weights: four columns of 16 output rows
constexpr int kLines = kColumnBlock / 4;
constexpr int kWeightBytes = kLines * kLineBytes;  // a tile of weights
constexpr int kDots = kTileRows * kRowTile;        // 32-bit sums of a product: a tile, too

// Tiles of activations that lie in the second-level cache while the row tiles of weights pass: 64
// rows of 5,632 columns are 0.7 MB in 16 bits.
constexpr int kTilesTogether = 4;

// Tiles 0 to 3 hold sums, 4 and 5 activations, 6 and 7 weights.
constexpr TileConfig kConfig = {.row_bytes = {64, 64, 64, 64, 32, 32, 64, 64},
                                .rows = {16, 16, 16, 16, 16, 16, kLines, kLines}};

// gcc does not know that a load of a tile reads memory: stores before it must not move behind it.
inline void finish_stores() { asm volatile("" ::: "memory"); }

// dots[plane][16 rows of activations][16 output rows] of one block. The two slots have registers of
// their own, so that a product does not wait for the one before. Registers are numbers in the text
// of instructions, no variables.
template <bool two_planes, int slot>
inline void multiply_block(const uint8_t* x, const uint8_t* weights, int32_t* dots) {
  if constexpr (slot == 0) {
    _tile_loadd(6, weights, kLineBytes);
    _tile_loadd(4, x, kColumnBlock);
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
    _tile_stored(0, dots, kLineBytes);
    if constexpr (two_planes) {
      _tile_loadd(5, x + kTileBytes, kColumnBlock);
      _tile_zero(1);
      _tile_dpbusd(1, 5, 6);
      _tile_stored(1, dots + kDots, kLineBytes);
    }
  } else {
    _tile_loadd(7, weights, kLineBytes);
    _tile_loadd(4, x, kColumnBlock);
    _tile_zero(2);
    _tile_dpbssd(2, 4, 7);
    _tile_stored(2, dots, kLineBytes);
    if constexpr (two_planes) {
      _tile_loadd(5, x + kTileBytes, kColumnBlock);
      _tile_zero(3);
      _tile_dpbusd(3, 5, 7);
      _tile_stored(3, dots + kDots, kLineBytes);
    }
  }
}

// f(Constant<row>) for each row of a tile. The rows are constants from the start, unlike those of a
// loop that is unrolled late: only so do 16 rows of sums stay in registers.
template <class F>
inline void each_row(F&& f) {
  [&]<int... row>(std::integer_sequence<int, row...>) {
    (f(Constant<row>{}), ...);
  }(std::make_integer_sequence<int, kTileRows>{});
}

// The sum of a plane's products, less the zero points.
template <Scheme scheme>
inline __m512i dots_of_row(const int32_t* dots, const int32_t* sums, int row, __m512i minus_zero) {
  const __m512i dot = _mm512_load_si512(dots + row * kRowTile);
  if constexpr (scheme != Scheme::kAsym) return dot;
  // 16-bit pairs: the zero, which is a byte, times the sum, and whatever is above times 0.
  return _mm512_dpwssd_epi32(dot, minus_zero, _mm512_set1_epi32(sums[row]));
}

// The sum of a row's integers in a block: its planes have their sums in the lower 16 bits.
template <bool two_planes>
inline int32_t sum_of_row(const int32_t* sums, int row) {
  const int32_t last = static_cast<int16_t>(sums[row + (two_planes ? kTileRows : 0)]);
  return two_planes ? 256 * static_cast<int16_t>(sums[row]) + last : last;
}

// One row tile of weights, in bytes, times one tile of activations.
template <bool two_planes, FloatType scale_type, Scheme scheme>
void multiply_tile(const Matrix& m, int tile, const uint8_t* weights, const TileRows& x,
                   int row_tile, const Output& out) {
  alignas(64) int32_t dots[2][two_planes ? 2 * kDots : kDots];
  const int blocks = m.blocks();
  const auto multiply = [&](int block) {
    const uint8_t* values = x.tile_values(row_tile, block);
    const uint8_t* codes = weights + static_cast<size_t>(block) * kWeightBytes;
    block % 2 ? multiply_block<two_planes, 1>(values, codes, dots[1])
              : multiply_block<two_planes, 0>(values, codes, dots[0]);
  };
  __m512 sums[kTileRows];
  each_row([&](auto row) { sums[row] = _mm512_setzero_ps(); });
  multiply(0);
  int block = 0;
  for (int group = 0; group < m.groups(); ++group) {
    const size_t at = (static_cast<size_t>(tile) * m.groups() + group) * kRowTile;
    const __m512 weight_scale = Registers512::load_scales<scale_type>(m.scales, at);
    __m512 minimum = _mm512_setzero_ps();
    if constexpr (has_minima(scheme)) {
      minimum = Registers512::load_minima<scheme, scale_type>(m.minima, at, weight_scale);
    }
    __m512i minus_zero = _mm512_setzero_si512();
    if constexpr (scheme == Scheme::kAsym) {
      const __m128i zeros = _mm_loadu_si128(reinterpret_cast<const __m128i*>(m.zeros + at));
      minus_zero = _mm512_sub_epi32(minus_zero, _mm512_cvtepi8_epi32(zeros));
    }
    const int last = std::min(blocks, (group + 1) * m.blocks_per_group);
    for (; block < last; ++block) {
      // Tiles of the next block are multiplied while this block's sums become floats.
      if (block + 1 < blocks) multiply(block + 1);
      const int32_t* block_dots = dots[block % 2];
      const int32_t* block_sums = x.tile_sums(row_tile, block);
      const float* scales = x.tile_scales(row_tile, block);
      each_row([&](auto row) {
        __m512i dot = dots_of_row<scheme>(block_dots, block_sums, row, minus_zero);
        if constexpr (two_planes) {
          const __m512i lower =
              dots_of_row<scheme>(block_dots + kDots, block_sums + kTileRows, row, minus_zero);
          dot = _mm512_add_epi32(_mm512_slli_epi32(dot, 8), lower);
        }
        const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(scales[row]));
        sums[row] = _mm512_fmadd_ps(product, weight_scale, sums[row]);
        if constexpr (has_minima(scheme)) {
          const int32_t sum = sum_of_row<two_planes>(block_sums, row);
          sums[row] =
              _mm512_fmadd_ps(Registers512::scaled_sum(sum, scales[row]), minimum, sums[row]);
        }
      });
    }
  }
  const int first = row_tile * kTileRows, count = std::min(kTileRows, x.rows - first);
  const int output = tile * kRowTile, outputs = std::min(kRowTile, m.rows - output);
  alignas(64) float stored[kTileRows][kRowTile];
  each_row([&](auto row) { _mm512_store_ps(stored[row], sums[row]); });
  for (int row = 0; row < count; ++row) {
    store_output(m, out, first + row, output, outputs, stored[row]);
  }
}

// 4-bit codes of a row tile as bytes, in the order of 8-bit codes. Less 8, if that is their zero.
void unpack_tile(const Matrix& m, int tile, uint8_t* out) {
  const __m512i zero = _mm512_set1_epi8(m.scheme() == Scheme::kSym ? 8 : 0);
  const uint8_t* codes = block_codes(m, tile, 0);
  const uint8_t* const end = codes + static_cast<size_t>(m.blocks()) * block_bytes(m.type);
  for (; codes < end; codes += kLineBytes, out += 2 * kLineBytes) {
    const __m512i pairs = _mm512_loadu_si512(codes);
    const __m512i lower = Registers512::low_nibbles(pairs);
    const __m512i upper = Registers512::high_nibbles(pairs);
    _mm512_store_si512(out, _mm512_sub_epi8(lower, zero));
    _mm512_store_si512(out + kLineBytes, _mm512_sub_epi8(upper, zero));
  }
  finish_stores();
}

size_t unpacked_bytes(int cols) { return static_cast<size_t>(blocks_of(cols)) * kWeightBytes; }

template <bool two_planes>
void multiply(const Matrix& m, int begin, int end, const TileRows& x, const Output& out,
              Scratch scratch) {
  const ConfiguredTiles configured(kConfig);
  uint8_t* unpacked = take<uint8_t>(scratch, unpacked_bytes(m.cols));
  with_packed_types(m, [&](auto type, auto scale, auto scheme) {
    for (int first = 0; first < x.row_tiles(); first += kTilesTogether) {
      const int last = std::min(first + kTilesTogether, x.row_tiles());
      for (int tile = begin; tile < end; ++tile) {
        const uint8_t* weights = block_codes(m, tile, 0);
        if constexpr (type.value == WeightType::kInt4) {
          unpack_tile(m, tile, unpacked);
          weights = unpacked;
        }
        for (int row_tile = first; row_tile < last; ++row_tile) {
          multiply_tile<two_planes, scale.value, scheme.value>(m, tile, weights, x, row_tile, out);
        }
      }
    }
  });
}

}  // namespace

size_t product_scratch(int rows, int cols) {
  return rows < kLeastRows ? avx512_vnni::product_scratch(rows, cols)
                           : scratch_bytes<uint8_t>(unpacked_bytes(cols));
}

void integer_product(const Matrix& m, int begin, int end, const Activations& activations,
                     Output out, Scratch scratch) {
  if (activations.rows < kLeastRows) {
    avx512_vnni::integer_product(m, begin, end, activations, out, scratch);
    return;
  }
  activations.type == ComputeType::kInt8
      ? multiply<false>(m, begin, end, tile_rows(activations), out, scratch)
      : multiply<true>(m, begin, end, tile_rows(activations), out, scratch);
}

}  // namespace ncl::amx
