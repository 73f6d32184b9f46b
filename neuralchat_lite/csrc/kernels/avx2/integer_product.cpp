// Packed weights times integer activations. Rows of bytes go through `maddubs` (integer_tiles.h).
// int8 codes times 16-bit integers go through `madd`: two planes of bytes would take twice as many
// instructions, as products of two full bytes fill 16 bits.

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/byte_products.h"
#include "kernels/avx2/wide_rows.h"
#include "kernels/integer_tiles.h"

namespace ncl::avx2 {
namespace {

struct Tuning {
  // One row shares its broadcasts between two tiles if the sums leave registers for that.
  template <int planes>
  static constexpr Shape kFewRows = planes == 1 ? Shape{2, 1} : Shape{1, 1};
  template <int planes>
  static constexpr Shape kManyRows = planes == 1 ? Shape{1, 4} : Shape{1, 2};
  static constexpr int kMostFew = 3;
};

template <WeightType type, class Product, int planes>
void multiply(const Matrix& m, int begin, int end, const ByteRows<planes>& x, const Output& out,
              Scratch scratch) {
  multiply_bytes<Registers256, Product, type, Tuning, planes>(m, begin, end, x, out, scratch);
}

// One row tile of int8 codes times rows row .. row + rows of 16-bit integers. `pmovsxbw` makes four
// columns of four output rows a register; its sums of column pairs are added up once a block.
template <FloatType scale_type, Scheme scheme, int rows>
[[gnu::noinline]] void multiply_wide(const Matrix& m, int tile, const Activations& x, int row,
                                     const Output& out) {
  using Set = Registers256;
  const ByteRows<2> bytes = byte_rows<2>(x);
  const uint8_t* codes = block_codes(m, tile, 0);
  const int16_t* values = wide_row(x, row);
  const size_t stride = static_cast<size_t>(bytes.blocks) * kColumnBlock;
  const float* row_scales = bytes.row_scales(row);
  const int32_t* row_sums = bytes.row_sums(row);
  __m256 total[rows][2];
  for (auto& of_row : total) of_row[0] = of_row[1] = _mm256_setzero_ps();
  int block = 0;
  for (int group = 0; group < m.groups(); ++group) {
    const size_t at = (static_cast<size_t>(tile) * m.groups() + group) * kRowTile;
    __m256 weight_scale[2], minimum[2];
    __m256i zero[2];
    for (int half = 0; half < 2; ++half) {
      weight_scale[half] = load8<scale_type>(m.scales, at + 8 * half);
      if constexpr (scheme == Scheme::kAsym) {
        zero[half] = Set::zero_pairs(m.zeros + at + 8 * half, 0);
      }
      if constexpr (has_minima(scheme)) {
        minimum[half] =
            Set::load_minima<scheme, scale_type>(m.minima, at + 8 * half, weight_scale[half]);
      }
    }
    const int last = std::min(bytes.blocks, (group + 1) * m.blocks_per_group);
    for (; block < last; ++block, values += kColumnBlock) {
      __m256i sum[rows][4];  // of output rows 4 k .. 4 k + 3, two each
      for (auto& of_row : sum) std::fill_n(of_row, 4, Set::zero());
#pragma GCC unroll 8
      for (int word = 0; word < kWords; ++word, codes += kWordBytes) {
        _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetchBytes), _MM_HINT_T0);
        __m256i a[rows];
        for (int r = 0; r < rows; ++r) {
          int64_t four;
          std::memcpy(&four, values + r * stride + 4 * word, 8);
          a[r] = _mm256_set1_epi64x(four);
        }
        for (int k = 0; k < 4; ++k) {
          const __m256i weights = _mm256_cvtepi8_epi16(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 16 * k)));
          for (int r = 0; r < rows; ++r) {
            sum[r][k] = Set::add(sum[r][k], _mm256_madd_epi16(weights, a[r]));
            in_order(sum[r][k]);
          }
        }
      }
      for (int r = 0; r < rows; ++r) {
        const float scale = row_scales[r * bytes.blocks + block];
        const int32_t of_row = row_sums[r * bytes.blocks + block];
        for (int half = 0; half < 2; ++half) {
          __m256i dot = _mm256_hadd_epi32(sum[r][2 * half], sum[r][2 * half + 1]);
          dot = _mm256_permute4x64_epi64(dot, 0xd8);  // hadd works within 128-bit halves
          if constexpr (scheme == Scheme::kAsym) {
            dot = Set::sub(dot, Set::times_sum(zero[half], of_row));
          }
          total[r][half] = Set::fma(Set::scaled(dot, scale), weight_scale[half], total[r][half]);
          if constexpr (has_minima(scheme)) {
            total[r][half] =
                Set::fma(Set::scaled_sum(of_row, scale), minimum[half], total[r][half]);
          }
        }
      }
    }
  }
  const int output = tile * kRowTile, outputs = std::min(kRowTile, m.rows - output);
  for (int r = 0; r < rows; ++r) {
    float stored[kRowTile];
    for (int half = 0; half < 2; ++half) Set::store_floats(stored + 8 * half, total[r][half]);
    store_output(m, out, row + r, output, outputs, stored);
  }
}

constexpr int kWideRows = 2;

void multiply_wide_rows(const Matrix& m, int begin, int end, const Activations& x, Output out) {
  with_float_type(m.scale_type, [&](auto scale) {
    with_scheme(m, [&](auto scheme) {
      for (int first = 0; first < x.rows; first += kPanelRows) {
        for (int tile = begin; tile < end; ++tile) {
          in_row_steps<kWideRows>(std::min(kPanelRows, x.rows - first), [&](auto rows, int row) {
            multiply_wide<scale.value, scheme.value, rows.value>(m, tile, x, first + row, out);
          });
        }
      }
    });
  });
}

}  // namespace

size_t activation_bytes(int rows, int cols, ComputeType type) {
  return type == ComputeType::kBf16 ? wide_rows_bytes(rows, cols)
                                    : byte_rows_size(rows, cols, type);
}

void write_activation_row(const float* x, const Activations& out, int row) {
  write_byte_row(x, out, row);
  if (out.type != ComputeType::kBf16) return;
  const ByteRows<2> bytes = byte_rows<2>(out);
  const int8_t* planes = bytes.row_values(row);
  int16_t* wide = wide_row(out, row);
  for (int block = 0; block < bytes.blocks; ++block, planes += 2 * kColumnBlock) {
    for (int i = 0; i < kColumnBlock; ++i) {
      *wide++ = static_cast<int16_t>(planes[i] * 256 + planes[kColumnBlock + i]);
    }
  }
}

size_t product_scratch(int rows, int cols) { return tiles_scratch<Tuning>(rows, cols); }

void integer_product(const Matrix& m, int begin, int end, const Activations& x, Output out,
                     Scratch scratch) {
  constexpr WeightType kInt4 = WeightType::kInt4, kInt8 = WeightType::kInt8;
  if (x.type == ComputeType::kInt8) {
    const ByteRows<1> rows = byte_rows<1>(x);
    m.type == kInt4 ? multiply<kInt4, NibbleProduct>(m, begin, end, rows, out, scratch)
                    : multiply<kInt8, SignedByteProduct>(m, begin, end, rows, out, scratch);
  } else if (m.type == kInt4) {
    multiply<kInt4, NibbleProduct>(m, begin, end, byte_rows<2>(x), out, scratch);
  } else {
    multiply_wide_rows(m, begin, end, x, out);
  }
}

}  // namespace ncl::avx2
