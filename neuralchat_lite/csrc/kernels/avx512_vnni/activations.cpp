// Activations as rows of bytes (eight_bit_rows.h), one plane for compute in int8 and two for bf16.

#include <immintrin.h>

#include <cmath>
#include <limits>

#include "kernels/avx512_vnni/avx512_vnni.h"
#include "kernels/eight_bit_rows.h"

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

template <int planes>
void write_row(const float* x, const Activations& out, int row) {
  const ByteRows<planes> to = byte_rows<planes>(out);
  int8_t* values = to.row_values(row);
  for (int block = 0; block < to.blocks; ++block, values += planes * kColumnBlock) {
    const int begin = block * kColumnBlock;
    const Block found = quantize_block(x + begin, out.cols - begin, largest_integer(out.type));
    for (int k = 0; k < 2; ++k) {
      const __m512i v = found.integers[k];
      const auto put = [&](int plane, __m512i bytes) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(values + plane * kColumnBlock + 16 * k),
                         _mm512_cvtepi32_epi8(bytes));
      };
      if constexpr (planes == 2) {
        put(0, _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8));
      }
      put(planes - 1, v);
    }
    to.row_scales(row)[block] = found.scale;
    to.row_sums(row)[block] = found.sum;
  }
}

}  // namespace

void write_activation_row(const float* x, const Activations& out, int row) {
  out.type == ComputeType::kInt8 ? write_row<1>(x, out, row) : write_row<2>(x, out, row);
}

}  // namespace ncl::avx512_vnni
