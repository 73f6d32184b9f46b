// AVX2 + FMA + F16C. One row of activations runs from the packed codes straight into 16-bit
// products; more rows share a tile unpacked into the first-level cache.

#include "kernels/kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels/avx2/vectors.h"
#include "kernels/round_to_nearest.h"
#include "kernels/scalar.h"

namespace ncl {
namespace {

// Codes are read once and in order, but the hardware prefetcher stops at the end of a 4 kB page.
// 1 kB ahead reached 0.72 of the bandwidth, 2 to 4 kB reach 0.85 (docs/design.md).
constexpr int kPrefetchBytes = 3072;
// Blocks of 32 columns unpacked at once: 16-bit codes take 1 kB a block, floats 2 kB.
constexpr int kIntegerPanelBlocks = 16;
constexpr int kFloatPanelBlocks = 8;

void rms_norm(const float* x, const float* weight, float eps, int n, float* out) {
  __m256 squares[4] = {};
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    for (int k = 0; k < 4; ++k) {
      const __m256 v = _mm256_loadu_ps(x + i + 8 * k);
      squares[k] = _mm256_fmadd_ps(v, v, squares[k]);
    }
  }
  double sum = sum8(
      _mm256_add_ps(_mm256_add_ps(squares[0], squares[1]), _mm256_add_ps(squares[2], squares[3])));
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  const float scale = 1.0f / std::sqrt(static_cast<float>(sum / n) + eps);
  const __m256 scales = _mm256_set1_ps(scale);
  for (i = 0; i + 8 <= n; i += 8) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + i), scales);
    _mm256_storeu_ps(out + i, _mm256_mul_ps(scaled, _mm256_loadu_ps(weight + i)));
  }
  for (; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void silu_gate(const float* gate, const float* up, int n, float* out) {
  const __m256 one = _mm256_set1_ps(1.0f);
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 g = _mm256_loadu_ps(gate + i);
    const __m256 denominator = _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), g)));
    const __m256 silu = _mm256_div_ps(g, denominator);
    _mm256_storeu_ps(out + i, _mm256_mul_ps(silu, _mm256_loadu_ps(up + i)));
  }
  for (; i < n; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void quantize_row(const float* x, int cols, int limit, IntegerRows& out, int row) {
  int16_t* values = out.values.data() + static_cast<size_t>(row) * out.blocks * kColumnBlock;
  const size_t at = static_cast<size_t>(row) * out.blocks;
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256 infinity = _mm256_set1_ps(std::numeric_limits<float>::infinity());
  // 16-bit words 0, 2, 1, 3 of each four.
  const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1,
                                         4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  for (int block = 0; block < out.blocks; ++block, values += kColumnBlock) {
    const int begin = block * kColumnBlock, count = std::min(kColumnBlock, cols - begin);
    float padded[kColumnBlock] = {};
    const float* source = x + begin;
    if (count < kColumnBlock) {
      std::copy(source, source + count, padded);
      source = padded;
    }
    __m256 v[4], largest8 = _mm256_setzero_ps(), bad = _mm256_setzero_ps();
    for (int k = 0; k < 4; ++k) {
      v[k] = _mm256_loadu_ps(source + 8 * k);
      const __m256 absolute = _mm256_and_ps(v[k], magnitude);
      largest8 = _mm256_max_ps(largest8, absolute);
      bad = _mm256_or_ps(bad, _mm256_cmp_ps(absolute, infinity, _CMP_NLT_UQ));
    }
    const float largest = max8(largest8);
    const bool finite = _mm256_movemask_ps(bad) == 0;
    float inverse = finite && largest > 0 ? limit / largest : 0.0f;
    const bool usable = finite && std::isfinite(inverse);
    __m256i integers[4], sum = _mm256_setzero_si256();
    for (int k = 0; k < 4; ++k) {
      integers[k] = usable ? _mm256_cvtps_epi32(_mm256_mul_ps(v[k], _mm256_set1_ps(inverse)))
                           : _mm256_setzero_si256();
      integers[k] = _mm256_min_epi32(integers[k], _mm256_set1_epi32(limit));
      integers[k] = _mm256_max_epi32(integers[k], _mm256_set1_epi32(-limit));
      sum = _mm256_add_epi32(sum, integers[k]);
    }
    for (int k = 0; k < 2; ++k) {
      // packs works within 128-bit halves; the permutation puts the columns back in order.
      __m256i words = _mm256_packs_epi32(integers[2 * k], integers[2 * k + 1]);
      words = _mm256_permute4x64_epi64(words, 0xd8);
      words = _mm256_shuffle_epi8(words, order);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + 16 * k), words);
    }
    out.scales[at + block] = finite ? largest / limit : std::numeric_limits<float>::quiet_NaN();
    out.sums[at + block] = sum8(sum);
  }
}

// The 16-bit columns of 64 packed bytes, as register pairs (rows 0..7, rows 8..15). Each 32-bit
// word holds two columns of one row, in the order of IntegerRows. `f(pair, low, high)`.
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

inline __m256i load_zeros(const int8_t* zeros) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros)));
}

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
// shifted once. A sum of 4 pairs is at most 8 * 15 * 256 * 32767, which is below 2^31.
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
void integer_row(const Matrix& m, int begin, int end, const IntegerRows& x, Output out) {
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
      __m256 low_part = _mm256_setzero_ps(), high_part = _mm256_setzero_ps();
      const int last = std::min(blocks, (group + 1) * m.blocks_per_group);
      for (int block = group * m.blocks_per_group; block < last; ++block) {
        const int16_t* values = x.values.data() + static_cast<size_t>(block) * kColumnBlock;
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
        low_part = _mm256_fmadd_ps(_mm256_cvtepi32_ps(low_dot), scale, low_part);
        high_part = _mm256_fmadd_ps(_mm256_cvtepi32_ps(high_dot), scale, high_part);
      }
      low_sum = _mm256_fmadd_ps(low_part, load8<scale_type>(m.scales, at), low_sum);
      high_sum = _mm256_fmadd_ps(high_part, load8<scale_type>(m.scales, at + 8), high_sum);
    }
    store_tile(m, out, 0, tile, low_sum, high_sum);
  }
}

// Unpacks `count` blocks of a row tile to 16-bit (code - zero): [pair][16 rows][2 columns].
template <WeightType type, bool asymmetric>
void unpack_integers(const Matrix& m, int tile, int first, int count, int16_t* panel) {
  constexpr int kTiles = kPairsPerBlock / kPairsPerTile<type>;
  const uint8_t* codes =
      m.data + (static_cast<size_t>(tile) * m.blocks() + first) * block_bytes(type);
  const auto twice = [](__m256i v) { return _mm256_or_si256(v, _mm256_slli_epi32(v, 16)); };
  for (int block = first; block < first + count; ++block) {
    __m256i low_zero = _mm256_set1_epi16(type == WeightType::kInt4 ? 8 : 0), high_zero = low_zero;
    if constexpr (asymmetric) {
      const size_t at =
          (static_cast<size_t>(tile) * m.groups() + block / m.blocks_per_group) * kRowTile;
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
void multiply_panel(const int16_t* panel, const float* scales, int count, const IntegerRows& x,
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
    const size_t at =
        (static_cast<size_t>(tile) * m.groups() + block / m.blocks_per_group) * kRowTile;
    _mm256_store_ps(out, load8<scale_type>(m.scales, at));
    _mm256_store_ps(out + 8, load8<scale_type>(m.scales, at + 8));
  }
}

// Calls f(integral_constant<N>, row) over all rows, N = kMost at a time and then the rest.
template <int kMost, class F>
inline void in_row_steps(int rows, F&& f) {
  int row = 0;
  for (; row + kMost <= rows; row += kMost) f(std::integral_constant<int, kMost>{}, row);
  if constexpr (kMost > 1) {
    if (row < rows) {
      in_row_steps<kMost - 1>(rows - row, [&](auto n, int rest) { f(n, row + rest); });
    }
  }
}

template <WeightType type, FloatType scale_type, bool asymmetric>
void integer_rows(const Matrix& m, int begin, int end, const IntegerRows& x, Output out) {
  alignas(64) int16_t panel[kIntegerPanelBlocks * kColumnBlock * kRowTile];
  alignas(64) float scales[kIntegerPanelBlocks * kRowTile];
  std::vector<float> sums(static_cast<size_t>(x.rows) * kRowTile);
  for (int tile = begin; tile < end; ++tile) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int first = 0; first < m.blocks(); first += kIntegerPanelBlocks) {
      const int count = std::min(kIntegerPanelBlocks, m.blocks() - first);
      unpack_integers<type, asymmetric>(m, tile, first, count, panel);
      load_scales<scale_type>(m, tile, first, count, scales);
      in_row_steps<4>(x.rows, [&](auto rows, int row) {
        multiply_panel<rows.value>(panel, scales, count, x, row, first, &sums[row * kRowTile]);
      });
    }
    for (int row = 0; row < x.rows; ++row) {
      const float* sum = &sums[row * kRowTile];
      store_tile(m, out, row, tile, _mm256_loadu_ps(sum), _mm256_loadu_ps(sum + 8));
    }
  }
}

// Unpacks `count` blocks of a row tile to fp32 weights: [column][16 rows].
template <WeightType type, FloatType scale_type>
void unpack_floats(const Matrix& m, int tile, int first, int count, float* panel) {
  constexpr bool kNibbles = type == WeightType::kInt4;
  const uint8_t* codes =
      m.data + (static_cast<size_t>(tile) * m.blocks() + first) * block_bytes(type);
  for (int block = first; block < first + count; ++block) {
    const size_t at =
        (static_cast<size_t>(tile) * m.groups() + block / m.blocks_per_group) * kRowTile;
    for (int half = 0; half < 2; ++half) {
      const __m256 scale = load8<scale_type>(m.scales, at + 8 * half);
      const __m256i zero =
          m.zeros ? load_zeros(m.zeros + at + 8 * half) : _mm256_set1_epi32(kNibbles ? 8 : 0);
      float* target = panel + 8 * half;
      const auto put = [&](__m256i code) {
        const __m256 value = _mm256_cvtepi32_ps(_mm256_sub_epi32(code, zero));
        _mm256_store_ps(target, _mm256_mul_ps(value, scale));
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

template <WeightType type, FloatType scale_type>
void float_rows(const Matrix& m, int begin, int end, const float* x, int x_rows, Output out) {
  alignas(64) float panel[kFloatPanelBlocks * kColumnBlock * kRowTile];
  std::vector<float> sums(static_cast<size_t>(x_rows) * kRowTile);
  for (int tile = begin; tile < end; ++tile) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int first = 0; first < m.blocks(); first += kFloatPanelBlocks) {
      const int count = std::min(kFloatPanelBlocks, m.blocks() - first);
      const int column = first * kColumnBlock;
      const int columns = std::min(count * kColumnBlock, m.cols - column);
      unpack_floats<type, scale_type>(m, tile, first, count, panel);
      in_row_steps<6>(x_rows, [&](auto rows, int row) {
        multiply_floats<rows.value>(panel, columns, x + static_cast<size_t>(row) * m.cols + column,
                                    m.cols, &sums[row * kRowTile]);
      });
    }
    for (int row = 0; row < x_rows; ++row) {
      const float* sum = &sums[row * kRowTile];
      store_tile(m, out, row, tile, _mm256_loadu_ps(sum), _mm256_loadu_ps(sum + 8));
    }
  }
}

// Row-major weights: `outputs` rows of weights by `rows` rows of activations, along the columns.
template <FloatType type, int outputs, int rows>
void dense_block(const Matrix& m, int output, const float* x, int row, Output out) {
  const size_t stride = m.cols;
  const size_t weights = output * stride;
  const float* values = x + row * stride;
  __m256 sums[outputs][rows];
  for (auto& of_output : sums) std::fill(of_output, of_output + rows, _mm256_setzero_ps());
  int column = 0;
  for (; column + 8 <= m.cols; column += 8) {
    __m256 v[rows];
    for (int r = 0; r < rows; ++r) v[r] = _mm256_loadu_ps(values + r * stride + column);
    for (int o = 0; o < outputs; ++o) {
      const __m256 w = load8<type>(m.data, weights + o * stride + column);
      for (int r = 0; r < rows; ++r) sums[o][r] = _mm256_fmadd_ps(w, v[r], sums[o][r]);
    }
  }
  for (int r = 0; r < rows; ++r) {
    float totals[outputs];
    for (int o = 0; o < outputs; ++o) {
      totals[o] = sum8(sums[o][r]);
      for (int c = column; c < m.cols; ++c) {
        totals[o] += load_float(m.data, type, weights + o * stride + c) * values[r * stride + c];
      }
    }
    store_output(m, out, row + r, output, outputs, totals);
  }
}

template <FloatType type>
void dense_rows(const Matrix& m, int begin, int end, const float* x, int x_rows, Output out) {
  const int first = begin * kRowTile, last = std::min(end * kRowTile, m.rows);
  in_row_steps<4>(last - first, [&](auto outputs, int output) {
    in_row_steps<2>(x_rows, [&](auto rows, int row) {
      dense_block<type, outputs.value, rows.value>(m, first + output, x, row, out);
    });
  });
}

// The instance of a kernel template for a matrix: a table over its run-time types.
template <class F>
void with_float_type(FloatType type, F&& f) {
  switch (type) {
    case FloatType::kFp32:
      return f(std::integral_constant<FloatType, FloatType::kFp32>{});
    case FloatType::kBf16:
      return f(std::integral_constant<FloatType, FloatType::kBf16>{});
    case FloatType::kFp16:
      return f(std::integral_constant<FloatType, FloatType::kFp16>{});
  }
}

template <WeightType type, FloatType scale_type, bool asymmetric>
void integer_any(const Matrix& m, int begin, int end, const IntegerRows& x, Output out) {
  (x.rows == 1 ? integer_row<type, scale_type, asymmetric>
               : integer_rows<type, scale_type, asymmetric>)(m, begin, end, x, out);
}

void integer_product(const Matrix& m, int begin, int end, const IntegerRows& x, Output out) {
  with_float_type(m.scale_type, [&](auto scale) {
    constexpr FloatType kScale = decltype(scale)::value;
    const auto kernel = m.type == WeightType::kInt4
                            ? (m.zeros ? integer_any<WeightType::kInt4, kScale, true>
                                       : integer_any<WeightType::kInt4, kScale, false>)
                            : (m.zeros ? integer_any<WeightType::kInt8, kScale, true>
                                       : integer_any<WeightType::kInt8, kScale, false>);
    kernel(m, begin, end, x, out);
  });
}

void float_product(const Matrix& m, int begin, int end, const float* x, int rows, Output out) {
  with_float_type(m.scale_type, [&](auto scale) {
    constexpr FloatType kScale = decltype(scale)::value;
    const auto kernel = m.type == WeightType::kInt4 ? float_rows<WeightType::kInt4, kScale>
                                                    : float_rows<WeightType::kInt8, kScale>;
    kernel(m, begin, end, x, rows, out);
  });
}

void dense_product(const Matrix& m, int begin, int end, const float* x, int rows, Output out) {
  const auto kernel = m.type == WeightType::kFp32   ? dense_rows<FloatType::kFp32>
                      : m.type == WeightType::kBf16 ? dense_rows<FloatType::kBf16>
                                                    : dense_rows<FloatType::kFp16>;
  kernel(m, begin, end, x, rows, out);
}

// ---- attention: a pass over the keys with a running maximum, four queries at a time ----

constexpr int kChunkBlocks = 8;  // key blocks whose scores are held at once
constexpr int kChunk = kChunkBlocks * kKeyBlock;

template <FloatType type, int queries>
void score_block(const AttentionTask& task, int query, size_t key, float* scores) {
  __m256 low[queries], high[queries];
  for (int q = 0; q < queries; ++q) low[q] = high[q] = _mm256_setzero_ps();
  for (int i = 0; i < task.head_dim; ++i, key += kKeyBlock) {
    const __m256 low_key = load8<type>(task.keys, key), high_key = load8<type>(task.keys, key + 8);
    for (int q = 0; q < queries; ++q) {
      const __m256 value = _mm256_set1_ps(task.queries[query + q][i]);
      low[q] = _mm256_fmadd_ps(low_key, value, low[q]);
      high[q] = _mm256_fmadd_ps(high_key, value, high[q]);
    }
  }
  for (int q = 0; q < queries; ++q) {
    _mm256_storeu_ps(scores + q * kChunk, low[q]);
    _mm256_storeu_ps(scores + q * kChunk + 8, high[q]);
  }
}

// sums[q][dimension] += weights[q][position] * values[position][dimension].
template <FloatType type, int queries>
void add_values(const AttentionTask& task, const float* weights, int first, int count,
                float* const* sums) {
  const int dim = task.head_dim;
  int i = 0;
  for (; i + 16 <= dim; i += 16) {
    __m256 low[queries], high[queries];
    for (int q = 0; q < queries; ++q) {
      low[q] = _mm256_loadu_ps(sums[q] + i);
      high[q] = _mm256_loadu_ps(sums[q] + i + 8);
    }
    int slot = first % task.capacity;
    for (int k = 0; k < count; ++k) {
      const size_t at = static_cast<size_t>(slot) * dim + i;
      const __m256 low_value = load8<type>(task.values, at);
      const __m256 high_value = load8<type>(task.values, at + 8);
      for (int q = 0; q < queries; ++q) {
        const __m256 weight = _mm256_set1_ps(weights[q * kChunk + k]);
        low[q] = _mm256_fmadd_ps(low_value, weight, low[q]);
        high[q] = _mm256_fmadd_ps(high_value, weight, high[q]);
      }
      if (++slot == task.capacity) slot = 0;
    }
    for (int q = 0; q < queries; ++q) {
      _mm256_storeu_ps(sums[q] + i, low[q]);
      _mm256_storeu_ps(sums[q] + i + 8, high[q]);
    }
  }
  for (; i < dim; ++i) {
    int slot = first % task.capacity;
    for (int k = 0; k < count; ++k) {
      const float value = load_float(task.values, type, static_cast<size_t>(slot) * dim + i);
      for (int q = 0; q < queries; ++q) sums[q][i] += weights[q * kChunk + k] * value;
      if (++slot == task.capacity) slot = 0;
    }
  }
}

template <FloatType type, int queries>
void attend_queries(const AttentionTask& task, int query) {
  const int dim = task.head_dim;
  const float minus_infinity = -std::numeric_limits<float>::infinity();
  float* const* sums = task.outputs + query;
  float largest[queries], total[queries];
  int begin = task.first[query], end = task.last[query];
  int all_begin = begin, all_end = end;  // what every query sees
  for (int q = 0; q < queries; ++q) {
    std::fill(sums[q], sums[q] + dim, 0.0f);
    largest[q] = minus_infinity, total[q] = 0;
    begin = std::min(begin, task.first[query + q]);
    end = std::max(end, task.last[query + q]);
    all_begin = std::max(all_begin, task.first[query + q]);
    all_end = std::min(all_end, task.last[query + q]);
  }
  if (all_begin > all_end) all_begin = all_end = end + 1;  // nothing
  const int key_blocks = task.capacity / kKeyBlock;
  float scores[queries * kChunk];
  for (int chunk = begin / kKeyBlock * kKeyBlock; chunk <= end; chunk += kChunk) {
    // Whole key blocks are scored; positions outside [begin, end] are left out below.
    const int blocks = std::min(kChunkBlocks, (end - chunk) / kKeyBlock + 1);
    for (int block = 0; block < blocks; ++block) {
      const int slot_block = (chunk / kKeyBlock + block) % key_blocks;
      score_block<type, queries>(task, query, static_cast<size_t>(slot_block) * dim * kKeyBlock,
                                 scores + block * kKeyBlock);
    }
    for (int q = 0; q < queries; ++q) {
      float* of_query = scores + q * kChunk;
      const int from = std::max(task.first[query + q] - chunk, 0);
      const int to = std::min(task.last[query + q] - chunk + 1, blocks * kKeyBlock);
      std::fill(of_query, of_query + std::min(from, blocks * kKeyBlock), minus_infinity);
      for (int k = std::max(to, 0); k < blocks * kKeyBlock; ++k) of_query[k] = minus_infinity;
      if (from >= to) {
        std::fill(of_query, of_query + blocks * kKeyBlock, 0.0f);
        continue;
      }
      float maximum = largest[q];
      // A NaN score makes the maximum NaN, and so the whole result.
      for (int k = from; k < to; ++k) maximum = of_query[k] <= maximum ? maximum : of_query[k];
      const float shrink = std::exp(largest[q] - maximum);
      const __m256 maximum8 = _mm256_set1_ps(maximum);
      __m256 sum = _mm256_setzero_ps();
      for (int k = 0; k < blocks * kKeyBlock; k += 8) {
        const __m256 score = _mm256_loadu_ps(of_query + k);
        // exp8 stops at e^-87; a hidden position weighs nothing at all.
        const __m256 hidden = _mm256_cmp_ps(score, _mm256_set1_ps(minus_infinity), _CMP_EQ_OQ);
        const __m256 weight = _mm256_andnot_ps(hidden, exp8(_mm256_sub_ps(score, maximum8)));
        _mm256_storeu_ps(of_query + k, weight);
        sum = _mm256_add_ps(sum, weight);
      }
      total[q] = total[q] * shrink + sum8(sum);
      for (int i = 0; i < dim; ++i) sums[q][i] *= shrink;
      largest[q] = maximum;
    }
    // The part of the positions [from, to] that lies in this chunk.
    const auto in_chunk = [&](int from, int to, auto&& add) {
      from = std::max(from, chunk), to = std::min(to, chunk + blocks * kKeyBlock - 1);
      if (from <= to) add(from, to - from + 1, from - chunk);
    };
    in_chunk(all_begin, all_end, [&](int from, int count, int offset) {
      add_values<type, queries>(task, scores + offset, from, count, sums);
    });
    // What only some see goes to them alone: a weight of 0 does not hide a NaN.
    for (int q = 0; q < queries; ++q) {
      const auto add = [&](int from, int count, int offset) {
        add_values<type, 1>(task, scores + q * kChunk + offset, from, count, sums + q);
      };
      in_chunk(task.first[query + q], std::min(all_begin - 1, task.last[query + q]), add);
      in_chunk(all_end + 1, task.last[query + q], add);
    }
  }
  for (int q = 0; q < queries; ++q) {
    for (int i = 0; i < dim; ++i) sums[q][i] /= total[q];
  }
}

void attend(const AttentionTask& task) {
  in_row_steps<4>(task.count, [&](auto queries, int query) {
    (task.cache_type == FloatType::kBf16
         ? attend_queries<FloatType::kBf16, queries.value>
         : attend_queries<FloatType::kFp32, queries.value>)(task, query);
  });
}

bool round_rows(const Rounding& op, int tile) {
  return round_tile(op, tile,
                    [](const void* data, FloatType type, size_t index, int count, float* out) {
                      with_float_type(type, [&](auto constant) {
                        constexpr FloatType kType = decltype(constant)::value;
                        int i = 0;
                        for (; i + 8 <= count; i += 8)
                          _mm256_storeu_ps(out + i, load8<kType>(data, index + i));
                        for (; i < count; ++i) out[i] = load_float(data, kType, index + i);
                      });
                    });
}

uint64_t read_all(const void* data, size_t n) {
  __m256i parts[4] = {};
  const auto* from = static_cast<const __m256i*>(data);
  for (size_t i = 0; i + 4 <= n / 32; i += 4) {
    for (int k = 0; k < 4; ++k) {
      parts[k] = _mm256_xor_si256(parts[k], _mm256_loadu_si256(from + i + k));
    }
  }
  const __m256i all =
      _mm256_xor_si256(_mm256_xor_si256(parts[0], parts[1]), _mm256_xor_si256(parts[2], parts[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0)) ^ _mm256_extract_epi64(all, 1) ^
         _mm256_extract_epi64(all, 2) ^ _mm256_extract_epi64(all, 3);
}

const Kernels kTable = {
    "avx2",        rms_norm,      silu_gate, quantize_row, integer_product,
    float_product, dense_product, attend,    round_rows,   read_all,
};

}  // namespace

const Kernels* avx2_kernels() { return &kTable; }

}  // namespace ncl

#else

namespace ncl {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace ncl

#endif
