// Activations as rows of bytes (eight_bit_rows.h), one plane for compute in int8 and two for bf16.

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/vectors.h"
#include "kernels/eight_bit_rows.h"

namespace ncl::avx2 {
namespace {

// Four registers of 32-bit integers that fit in bytes, in order.
inline void store_bytes(int8_t* to, const __m256i v[4]) {
  const __m256i words =
      _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
  // packs works within 128-bit halves; the permutation puts the columns back in order.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(words, order));
}

template <int planes>
void write_row(const float* x, const Activations& out, int row) {
  const ByteRows<planes> to = byte_rows<planes>(out);
  const int limit = largest_integer(out.type);
  int8_t* values = to.row_values(row);
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256 infinity = _mm256_set1_ps(std::numeric_limits<float>::infinity());
  for (int block = 0; block < to.blocks; ++block, values += planes * kColumnBlock) {
    const int begin = block * kColumnBlock, count = std::min(kColumnBlock, out.cols - begin);
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
    const BlockScales found = block_scales(max8(largest8), _mm256_movemask_ps(bad) == 0, limit);
    __m256i integers[4], sum = _mm256_setzero_si256();
    for (int k = 0; k < 4; ++k) {
      integers[k] = found.inverse != 0
                        ? _mm256_cvtps_epi32(_mm256_mul_ps(v[k], _mm256_set1_ps(found.inverse)))
                        : _mm256_setzero_si256();
      integers[k] = _mm256_min_epi32(integers[k], _mm256_set1_epi32(limit));
      integers[k] = _mm256_max_epi32(integers[k], _mm256_set1_epi32(-limit));
      sum = _mm256_add_epi32(sum, integers[k]);
    }
    if constexpr (planes == 2) {
      __m256i high[4];
      for (int k = 0; k < 4; ++k) {
        high[k] = _mm256_srai_epi32(_mm256_add_epi32(integers[k], _mm256_set1_epi32(128)), 8);
        integers[k] = _mm256_srai_epi32(_mm256_slli_epi32(integers[k], 24), 24);
      }
      store_bytes(values, high);
    }
    store_bytes(values + (planes - 1) * kColumnBlock, integers);
    to.row_scales(row)[block] = found.scale;
    to.row_sums(row)[block] = sum8(sum);
  }
}

}  // namespace

size_t byte_rows_size(int rows, int cols, ComputeType type) {
  if (type == ComputeType::kFp32) return 0;
  return type == ComputeType::kInt8 ? byte_rows_bytes<1>(rows, cols)
                                    : byte_rows_bytes<2>(rows, cols);
}

void write_byte_row(const float* x, const Activations& out, int row) {
  out.type == ComputeType::kInt8 ? write_row<1>(x, out, row) : write_row<2>(x, out, row);
}

}  // namespace ncl::avx2
