// Packed weights times fp32 activations, all in fp32: weights are unpacked panel by panel.

#include <algorithm>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/registers.h"
#include "kernels/avx2/vectors.h"
#include "kernels/dispatch.h"

namespace ncl::avx2 {
namespace {

// Blocks of 32 columns unpacked at once, 2 kB each.
constexpr int kPanelBlocks = 8;

// Unpacks `count` blocks of a row tile to fp32 weights: [column][16 rows].
template <WeightType type, FloatType scale_type, Scheme scheme>
void unpack_floats(const Matrix& m, int tile, int first, int count, float* panel) {
  constexpr bool kNibbles = type == WeightType::kInt4;
  const uint8_t* codes = block_codes(m, tile, first);
  for (int block = first; block < first + count; ++block) {
    const size_t at = group_index(m, tile, block);
    for (int half = 0; half < 2; ++half) {
      const __m256 scale = load8<scale_type>(m.scales, at + 8 * half);
      __m256 minimum = _mm256_setzero_ps();
      if constexpr (has_minima(scheme)) {
        minimum = Registers256::load_minima<scheme, scale_type>(m.minima, at + 8 * half, scale);
      }
      __m256i zero = _mm256_set1_epi32(kNibbles ? 8 : 0);
      if constexpr (scheme == Scheme::kAsym) zero = load_zeros(m.zeros + at + 8 * half);
      float* target = panel + 8 * half;
      const auto put = [&](__m256i code) {
        if constexpr (has_minima(scheme)) {
          const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(code), scale);
          _mm256_store_ps(target, _mm256_add_ps(product, minimum));
        } else {
          const __m256 value = _mm256_cvtepi32_ps(_mm256_sub_epi32(code, zero));
          _mm256_store_ps(target, _mm256_mul_ps(value, scale));
        }
        target += kRowTile;
      };
      for (int offset = 32 * half; offset < block_bytes(type); offset += 64) {
        const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + offset));
        if constexpr (kNibbles) {
          const __m256i mask = _mm256_set1_epi32(0xf);
          for (int shift : {0, 8, 16, 24, 4, 12, 20, 28}) {
            put(_mm256_and_si256(_mm256_srli_epi32(packed, shift), mask));
          }
        } else {
          for (int shift : {24, 16, 8, 0}) {
            put(_mm256_srai_epi32(_mm256_slli_epi32(packed, shift), 24));
          }
        }
      }
    }
    codes += block_bytes(type);
    panel += kColumnBlock * kRowTile;
  }
}

template <int rows>
void multiply_floats(const float* panel, int columns, const float* x, int stride, float* sums) {
  __m256 low[rows], high[rows];
  for (int r = 0; r < rows; ++r) low[r] = high[r] = _mm256_setzero_ps();
  for (int column = 0; column < columns; ++column, panel += kRowTile) {
    const __m256 low_weight = _mm256_load_ps(panel), high_weight = _mm256_load_ps(panel + 8);
    for (int r = 0; r < rows; ++r) {
      const __m256 value = _mm256_set1_ps(x[static_cast<size_t>(r) * stride + column]);
      low[r] = _mm256_fmadd_ps(low_weight, value, low[r]);
      high[r] = _mm256_fmadd_ps(high_weight, value, high[r]);
    }
  }
  for (int r = 0; r < rows; ++r, sums += kRowTile) {
    _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), low[r]));
    _mm256_storeu_ps(sums + 8, _mm256_add_ps(_mm256_loadu_ps(sums + 8), high[r]));
  }
}

template <WeightType type, FloatType scale_type, Scheme scheme>
[[gnu::noinline]] void float_rows(const Matrix& m, int begin, int end, const float* x, int x_rows,
                                  Output out, Scratch scratch) {
  alignas(64) float panel[kPanelBlocks * kColumnBlock * kRowTile];
  float* sums = take<float>(scratch, panel_sums(x_rows));
  walk_panels<kPanelBlocks>(m, begin, end, x_rows, sums, out, [&](int tile, int first, int count) {
    const int column = first * kColumnBlock;
    const int columns = std::min(count * kColumnBlock, m.cols - column);
    unpack_floats<type, scale_type, scheme>(m, tile, first, count, panel);
    in_row_steps<6>(x_rows, [&](auto rows, int row) {
      multiply_floats<rows.value>(panel, columns, x + static_cast<size_t>(row) * m.cols + column,
                                  m.cols, sums + row * kRowTile);
    });
  });
}

}  // namespace

size_t float_product_scratch(int rows, int) { return scratch_bytes<float>(panel_sums(rows)); }

void float_product(const Matrix& m, int begin, int end, const float* x, int rows, Output out,
                   Scratch scratch) {
  with_packed_types(m, [&](auto type, auto scale, auto scheme) {
    float_rows<type.value, scale.value, scheme.value>(m, begin, end, x, rows, out, scratch);
  });
}

}  // namespace ncl::avx2
