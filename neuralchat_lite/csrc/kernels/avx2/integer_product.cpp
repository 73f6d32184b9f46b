// Packed weights times activations in 16 bits, through the 16-bit products of `madd`. With one
// row, codes are unpacked in registers. Several rows share a panel that is unpacked once.

#include <algorithm>
#include <cstring>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/vectors.h"
#include "kernels/dispatch.h"
#include "kernels/sixteen_bit_rows.h"

namespace ncl::avx2 {
namespace {

// Codes are read once and in order, but the hardware prefetcher stops at the end of a 4 kB page.
// 1 kB ahead reached 0.72 of the bandwidth, 2 to 4 kB reach 0.85 (docs/design.md).
constexpr int kPrefetchBytes = 3072;
// Blocks of 32 columns unpacked at once, 1 kB each.
constexpr int kPanelBlocks = 16;

// The 16-bit columns of 64 packed bytes, as register pairs (rows 0..7, rows 8..15). Each 32-bit
// word holds two columns of one row, in the order of SixteenBitRows. `f(pair, low, high)`.
template <WeightType type, class F>
inline void for_each_pair(const uint8_t* codes, F&& f) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32));
  if constexpr (type == WeightType::kInt4) {
    const __m256i mask = _mm256_set1_epi16(0xf);
    const auto nibble = [&](__m256i v, int shift) {
      return _mm256_and_si256(_mm256_srli_epi16(v, shift), mask);
    };
    f(0, _mm256_and_si256(low, mask), _mm256_and_si256(high, mask));
    f(1, nibble(low, 8), nibble(high, 8));
    f(2, nibble(low, 4), nibble(high, 4));
    f(3, _mm256_srli_epi16(low, 12), _mm256_srli_epi16(high, 12));
  } else {
    const auto even = [](__m256i v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); };
    f(0, even(low), even(high));
    f(1, _mm256_srai_epi16(low, 8), _mm256_srai_epi16(high, 8));
  }
}

template <WeightType type>
constexpr int kPairsPerTile = type == WeightType::kInt4 ? 4 : 2;
constexpr int kPairsPerBlock = kColumnBlock / 2;

inline __m256i broadcast_pair(const int16_t* values) {
  int32_t pair;
  std::memcpy(&pair, values, 4);
  return _mm256_set1_epi32(pair);
}

inline void store_tile(const Matrix& m, const Output& out, int x_row, int tile, __m256 low,
                       __m256 high) {
  const int row = tile * kRowTile, count = std::min(kRowTile, m.rows - row);
  float sums[kRowTile];
  _mm256_storeu_ps(sums, low);
  _mm256_storeu_ps(sums + 8, high);
  store_output(m, out, x_row, row, count, sums);
}

// Adds the products of one block of int4 codes, without shifting every nibble down: those in the
// middle of a word are multiplied where they are, 16 and 256 times too large, and their sums
// shifted once. A sum of 4 pairs is at most 8 * 15 * 256 * 32639, which is below 2^31.
inline void add_int4_block(const uint8_t* codes, const int16_t* values, __m256i& low_dot,
                           __m256i& high_dot) {
  const __m256i first = _mm256_set1_epi16(0x000f), second = _mm256_set1_epi16(0x00f0),
                third = _mm256_set1_epi16(0x0f00);
  __m256i low_16 = _mm256_setzero_si256(), high_16 = low_16, low_256 = low_16, high_256 = low_16;
  for (int offset = 0; offset < 256; offset += 64, values += 8) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + offset + kPrefetchBytes), _MM_HINT_T0);
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + offset));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + offset + 32));
    const auto add = [](__m256i& sum, __m256i v, __m256i a) {
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(v, a));
    };
    __m256i a = broadcast_pair(values);
    add(low_dot, _mm256_and_si256(low, first), a);
    add(high_dot, _mm256_and_si256(high, first), a);
    a = broadcast_pair(values + 2);
    add(low_256, _mm256_and_si256(low, third), a);
    add(high_256, _mm256_and_si256(high, third), a);
    a = broadcast_pair(values + 4);
    add(low_16, _mm256_and_si256(low, second), a);
    add(high_16, _mm256_and_si256(high, second), a);
    a = broadcast_pair(values + 6);
    add(low_dot, _mm256_srli_epi16(low, 12), a);
    add(high_dot, _mm256_srli_epi16(high, 12), a);
  }
  low_dot = _mm256_add_epi32(low_dot, _mm256_srai_epi32(low_16, 4));
  high_dot = _mm256_add_epi32(high_dot, _mm256_srai_epi32(high_16, 4));
  low_dot = _mm256_add_epi32(low_dot, _mm256_srai_epi32(low_256, 8));
  high_dot = _mm256_add_epi32(high_dot, _mm256_srai_epi32(high_256, 8));
}

// One row of activations: reads the codes once, unpacks them in registers.
template <WeightType type, FloatType scale_type, bool asymmetric>
[[gnu::noinline]] void integer_row(const Matrix& m, int begin, int end, const SixteenBitRows& x,
                                   Output out) {
  const int blocks = m.blocks(), groups = m.groups();
  constexpr int kTiles = kPairsPerBlock / kPairsPerTile<type>;
  for (int tile = begin; tile < end; ++tile) {
    const uint8_t* codes = m.data + static_cast<size_t>(tile) * blocks * block_bytes(type);
    __m256 low_sum = _mm256_setzero_ps(), high_sum = _mm256_setzero_ps();
    for (int group = 0; group < groups; ++group) {
      const size_t at = (static_cast<size_t>(tile) * groups + group) * kRowTile;
      __m256i low_zero, high_zero;
      if constexpr (asymmetric) {
        low_zero = load_zeros(m.zeros + at);
        high_zero = load_zeros(m.zeros + at + 8);
      }
      const __m256 low_scale = load8<scale_type>(m.scales, at);
      const __m256 high_scale = load8<scale_type>(m.scales, at + 8);
      const int last = std::min(blocks, (group + 1) * m.blocks_per_group);
      for (int block = group * m.blocks_per_group; block < last; ++block) {
        const int16_t* values = x.values + static_cast<size_t>(block) * kColumnBlock;
        __m256i low_dot, high_dot;
        if constexpr (asymmetric) {
          const __m256i sum = _mm256_set1_epi32(-x.sums[block]);
          low_dot = _mm256_mullo_epi32(low_zero, sum);
          high_dot = _mm256_mullo_epi32(high_zero, sum);
        } else {
          low_dot = _mm256_set1_epi32(type == WeightType::kInt4 ? -8 * x.sums[block] : 0);
          high_dot = low_dot;
        }
        if constexpr (type == WeightType::kInt4) {
          add_int4_block(codes, values, low_dot, high_dot);
          codes += block_bytes(type);
        } else {
          for (int t = 0; t < kTiles; ++t, codes += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetchBytes), _MM_HINT_T0);
            for_each_pair<type>(codes, [&](int pair, __m256i low, __m256i high) {
              const __m256i a = broadcast_pair(values + (t * kPairsPerTile<type> + pair) * 2);
              low_dot = _mm256_add_epi32(low_dot, _mm256_madd_epi16(low, a));
              high_dot = _mm256_add_epi32(high_dot, _mm256_madd_epi16(high, a));
            });
          }
        }
        const __m256 scale = _mm256_set1_ps(x.scales[block]);
        const __m256 low = _mm256_mul_ps(_mm256_cvtepi32_ps(low_dot), scale);
        const __m256 high = _mm256_mul_ps(_mm256_cvtepi32_ps(high_dot), scale);
        low_sum = _mm256_fmadd_ps(low, low_scale, low_sum);
        high_sum = _mm256_fmadd_ps(high, high_scale, high_sum);
      }
    }
    store_tile(m, out, 0, tile, low_sum, high_sum);
  }
}

// Unpacks `count` blocks of a row tile to 16-bit (code - zero): [pair][16 rows][2 columns].
template <WeightType type, bool asymmetric>
void unpack_integers(const Matrix& m, int tile, int first, int count, int16_t* panel) {
  constexpr int kTiles = kPairsPerBlock / kPairsPerTile<type>;
  const uint8_t* codes = block_codes(m, tile, first);
  const auto twice = [](__m256i v) { return _mm256_or_si256(v, _mm256_slli_epi32(v, 16)); };
  for (int block = first; block < first + count; ++block) {
    __m256i low_zero = _mm256_set1_epi16(type == WeightType::kInt4 ? 8 : 0), high_zero = low_zero;
    if constexpr (asymmetric) {
      const size_t at = group_index(m, tile, block);
      const __m256i words = _mm256_set1_epi32(0xffff);
      low_zero = twice(_mm256_and_si256(load_zeros(m.zeros + at), words));
      high_zero = twice(_mm256_and_si256(load_zeros(m.zeros + at + 8), words));
    }
    for (int t = 0; t < kTiles; ++t, codes += 64) {
      for_each_pair<type>(codes, [&](int pair, __m256i low, __m256i high) {
        auto* target = reinterpret_cast<__m256i*>(panel + pair * 2 * kRowTile);
        _mm256_store_si256(target, _mm256_sub_epi16(low, low_zero));
        _mm256_store_si256(target + 1, _mm256_sub_epi16(high, high_zero));
      });
      panel += kPairsPerTile<type> * 2 * kRowTile;
    }
  }
}

// Adds the product of `rows` rows of activations with an unpacked panel to sums [rows][16].
template <int rows>
void multiply_panel(const int16_t* panel, const float* scales, int count, const SixteenBitRows& x,
                    int row, int first, float* sums) {
  for (int block = 0; block < count; ++block) {
    const int16_t* values[rows];
    __m256i low_dot[rows], high_dot[rows];
    for (int r = 0; r < rows; ++r) {
      values[r] = x.row_values(row + r) + static_cast<size_t>(first + block) * kColumnBlock;
      low_dot[r] = high_dot[r] = _mm256_setzero_si256();
    }
    for (int pair = 0; pair < kPairsPerBlock; ++pair, panel += 2 * kRowTile) {
      const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel));
      const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel) + 1);
      for (int r = 0; r < rows; ++r) {
        const __m256i a = broadcast_pair(values[r] + 2 * pair);
        low_dot[r] = _mm256_add_epi32(low_dot[r], _mm256_madd_epi16(low, a));
        high_dot[r] = _mm256_add_epi32(high_dot[r], _mm256_madd_epi16(high, a));
      }
    }
    const __m256 low_scale = _mm256_load_ps(scales + block * kRowTile);
    const __m256 high_scale = _mm256_load_ps(scales + block * kRowTile + 8);
    for (int r = 0; r < rows; ++r) {
      const __m256 scale = _mm256_set1_ps(x.row_scales(row + r)[first + block]);
      float* sum = sums + r * kRowTile;
      const __m256 low = _mm256_mul_ps(_mm256_cvtepi32_ps(low_dot[r]), scale);
      const __m256 high = _mm256_mul_ps(_mm256_cvtepi32_ps(high_dot[r]), scale);
      _mm256_storeu_ps(sum, _mm256_fmadd_ps(low, low_scale, _mm256_loadu_ps(sum)));
      _mm256_storeu_ps(sum + 8, _mm256_fmadd_ps(high, high_scale, _mm256_loadu_ps(sum + 8)));
    }
  }
}

// The scales of `count` blocks from `first`, one set of 16 floats a block.
template <FloatType scale_type>
void load_scales(const Matrix& m, int tile, int first, int count, float* out) {
  for (int block = first; block < first + count; ++block, out += kRowTile) {
    const size_t at = group_index(m, tile, block);
    _mm256_store_ps(out, load8<scale_type>(m.scales, at));
    _mm256_store_ps(out + 8, load8<scale_type>(m.scales, at + 8));
  }
}

template <WeightType type, FloatType scale_type, bool asymmetric>
[[gnu::noinline]] void integer_rows(const Matrix& m, int begin, int end, const SixteenBitRows& x,
                                    Output out, Scratch scratch) {
  alignas(64) int16_t panel[kPanelBlocks * kColumnBlock * kRowTile];
  alignas(64) float scales[kPanelBlocks * kRowTile];
  float* sums = take<float>(scratch, panel_sums(x.rows));
  walk_panels<kPanelBlocks>(m, begin, end, x.rows, sums, out, [&](int tile, int first, int count) {
    unpack_integers<type, asymmetric>(m, tile, first, count, panel);
    load_scales<scale_type>(m, tile, first, count, scales);
    in_row_steps<4>(x.rows, [&](auto rows, int row) {
      multiply_panel<rows.value>(panel, scales, count, x, row, first, sums + row * kRowTile);
    });
  });
}

}  // namespace

size_t product_scratch(int rows, int) { return scratch_bytes<float>(panel_sums(rows)); }

void integer_product(const Matrix& m, int begin, int end, const Activations& activations,
                     Output out, Scratch scratch) {
  const SixteenBitRows x = sixteen_bit_rows(activations);
  with_packed_types(m, [&](auto type, auto scale, auto asymmetric) {
    if (x.rows == 1) {
      integer_row<type.value, scale.value, asymmetric.value>(m, begin, end, x, out);
    } else {
      integer_rows<type.value, scale.value, asymmetric.value>(m, begin, end, x, out, scratch);
    }
  });
}

}  // namespace ncl::avx2
