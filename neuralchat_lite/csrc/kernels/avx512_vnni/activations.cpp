// Activations in 16 bits (sixteen_bit_rows.h) for compute in bf16, in 8 bits (eight_bit_rows.h) for
// compute in int8.

#include <immintrin.h>

#include <cmath>
#include <limits>

#include "kernels/avx512_vnni/avx512_vnni.h"
#include "kernels/eight_bit_rows.h"
#include "kernels/sixteen_bit_rows.h"

namespace ncl::avx512_vnni {
namespace {

// A block of 32 columns as integers of at most `limit`.
struct Block {
  __m512i integers[2];  // 32 bits each
  float scale;
  int32_t sum;
};

inline Block quantize_block(const float* x, int count, int limit) {
  const auto mask = [&](int first) {
    const int left = count - first;
    return static_cast<__mmask16>(left >= 16 ? 0xffff : left <= 0 ? 0 : (1u << left) - 1);
  };
  const __m512 infinity = _mm512_set1_ps(std::numeric_limits<float>::infinity());
  __m512 v[2], largest16 = _mm512_setzero_ps();
  __mmask16 bad = 0;
  for (int k = 0; k < 2; ++k) {
    v[k] = _mm512_maskz_loadu_ps(mask(16 * k), x + 16 * k);
    const __m512 absolute = _mm512_abs_ps(v[k]);
    largest16 = _mm512_max_ps(largest16, absolute);
    bad |= _mm512_cmp_ps_mask(absolute, infinity, _CMP_NLT_UQ);
  }
  const float largest = _mm512_reduce_max_ps(largest16);
  const bool finite = bad == 0;
  const BlockScales found = block_scales(largest, finite, limit);
  Block block;
  __m512i sum = _mm512_setzero_si512();
  for (int k = 0; k < 2; ++k) {
    __m512i integers = found.inverse != 0
                           ? _mm512_cvtps_epi32(_mm512_mul_ps(v[k], _mm512_set1_ps(found.inverse)))
                           : _mm512_setzero_si512();
    integers = _mm512_min_epi32(integers, _mm512_set1_epi32(limit));
    integers = _mm512_max_epi32(integers, _mm512_set1_epi32(-limit));
    sum = _mm512_add_epi32(sum, integers);
    block.integers[k] = integers;
  }
  block.scale = found.scale;
  block.sum = _mm512_reduce_add_epi32(sum);
  return block;
}

void write_sixteen_bits(const float* x, const Activations& out, int row) {
  const SixteenBitRows to = sixteen_bit_rows(out);
  const int limit = largest_integer(out.type);
  // 16-bit words 0, 2, 1, 3 of each four.
  const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1,
                                         4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  int16_t* values = to.row_values(row);
  for (int block = 0; block < to.blocks; ++block, values += kColumnBlock) {
    const int begin = block * kColumnBlock;
    const Block found = quantize_block(x + begin, out.cols - begin, limit);
    for (int k = 0; k < 2; ++k) {
      const __m256i words = _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(found.integers[k]), order);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + 16 * k), words);
    }
    to.row_scales(row)[block] = found.scale;
    to.row_sums(row)[block] = found.sum;
  }
}

void write_eight_bits(const float* x, const Activations& out, int row) {
  const EightBitRows to = eight_bit_rows(out);
  int8_t* values = to.row_values(row);
  for (int block = 0; block < to.blocks; ++block, values += kColumnBlock) {
    const int begin = block * kColumnBlock;
    const Block found = quantize_block(x + begin, out.cols - begin, 127);
    for (int k = 0; k < 2; ++k) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(values + 16 * k),
                       _mm512_cvtepi32_epi8(found.integers[k]));
    }
    to.row_scales(row)[block] = found.scale;
    to.row_sums(row)[block] = found.sum;
  }
}

}  // namespace

size_t activation_bytes(int rows, int cols, ComputeType type) {
  return type == ComputeType::kInt8 ? eight_bit_bytes(rows, cols)
                                    : sixteen_bit_bytes(rows, cols, type);
}

void write_activation_row(const float* x, const Activations& out, int row) {
  out.type == ComputeType::kInt8 ? write_eight_bits(x, out, row) : write_sixteen_bits(x, out, row);
}

}  // namespace ncl::avx512_vnni
