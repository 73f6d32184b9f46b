// A block of 32 activations as integers, in two registers, for every format of activations that is
// written with AVX-512.
#pragma once

#include <immintrin.h>

#include <limits>

#include "kernels/activation_block.h"

namespace ncl {
namespace {

struct QuantizedBlock {
  __m512i integers[2];  // 32 bits each
  float scale;          // NaN where the block held a NaN or infinity
};

// Integers of at most `limit`, from the first `count` values at `x`; the others are zero.
inline QuantizedBlock quantized_block(const float* x, int count, int limit) {
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
  const BlockScales scales = block_scales(largest, finite, limit);
  QuantizedBlock block;
  for (int k = 0; k < 2; ++k) {
    __m512i integers = scales.inverse != 0
                           ? _mm512_cvtps_epi32(_mm512_mul_ps(v[k], _mm512_set1_ps(scales.inverse)))
                           : _mm512_setzero_si512();
    integers = _mm512_min_epi32(integers, _mm512_set1_epi32(limit));
    block.integers[k] = _mm512_max_epi32(integers, _mm512_set1_epi32(-limit));
  }
  block.scale = scales.scale;
  return block;
}

inline int32_t sum_of(const __m512i integers[2]) {
  return _mm512_reduce_add_epi32(_mm512_add_epi32(integers[0], integers[1]));
}

}  // namespace
}  // namespace ncl
