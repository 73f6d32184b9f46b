// Activations in 16 bits: see sixteen_bit_rows.h.

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/vectors.h"
#include "kernels/sixteen_bit_rows.h"

namespace ncl::avx2 {

size_t activation_bytes(int rows, int cols, ComputeType type) {
  return sixteen_bit_bytes(rows, cols, type);
}

void write_activation_row(const float* x, const Activations& out, int row) {
  const SixteenBitRows to = sixteen_bit_rows(out);
  const int limit = largest_integer(out.type);
  int16_t* values = to.row_values(row);
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256 infinity = _mm256_set1_ps(std::numeric_limits<float>::infinity());
  // 16-bit words 0, 2, 1, 3 of each four.
  const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1,
                                         4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  for (int block = 0; block < to.blocks; ++block, values += kColumnBlock) {
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
    const float largest = max8(largest8);
    const bool finite = _mm256_movemask_ps(bad) == 0;
    const BlockScales found = block_scales(largest, finite, limit);
    __m256i integers[4], sum = _mm256_setzero_si256();
    for (int k = 0; k < 4; ++k) {
      integers[k] = found.inverse != 0
                        ? _mm256_cvtps_epi32(_mm256_mul_ps(v[k], _mm256_set1_ps(found.inverse)))
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
    to.row_scales(row)[block] = found.scale;
    to.row_sums(row)[block] = sum8(sum);
  }
}

}  // namespace ncl::avx2
