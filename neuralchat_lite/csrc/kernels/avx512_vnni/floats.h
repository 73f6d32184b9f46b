// Sixteen floats in a register, for kernels that are templates on a vector type.
#pragma once

#include <immintrin.h>

#include <initializer_list>

#include "kernels/kv_layout.h"

namespace ncl {
namespace {

struct Floats16 {
  static constexpr int kWidth = 16;
  static constexpr int kQueries = 8;  // that attention takes at once
  static constexpr int kSums = 16;    // registers that it adds up in

  __m512 v;

  static Floats16 zero() { return {_mm512_setzero_ps()}; }
  static Floats16 set(float value) { return {_mm512_set1_ps(value)}; }
  static Floats16 load(const float* values) { return {_mm512_loadu_ps(values)}; }
  void store(float* to) const { _mm512_storeu_ps(to, v); }

  // Elements index .. index + 16 of keys or values.
  template <KVType type>
  static Floats16 load(const void* data, size_t index) {
    if constexpr (type == KVType::kFp32) {
      return load(static_cast<const float*>(data) + index);
    } else if constexpr (type == KVType::kBf16) {
      const auto* halves = static_cast<const uint16_t*>(data) + index;
      const __m256i sixteen = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves));
      return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen), 16))};
    } else {
      const auto* bytes = static_cast<const uint8_t*>(data) + index;
      const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
      return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen))};
    }
  }

  static Floats16 fma(Floats16 a, Floats16 b, Floats16 c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
  }
  // `value`, but 0 in the places where x equals y.
  static Floats16 zero_where(Floats16 x, float y, Floats16 value) {
    const __mmask16 other = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(y), _CMP_NEQ_UQ);
    return {_mm512_maskz_mov_ps(other, value.v)};
  }
  Floats16 operator+(Floats16 other) const { return {_mm512_add_ps(v, other.v)}; }
  Floats16 operator-(Floats16 other) const { return {_mm512_sub_ps(v, other.v)}; }
  Floats16 operator*(Floats16 other) const { return {_mm512_mul_ps(v, other.v)}; }
  Floats16 max(Floats16 other) const { return {_mm512_max_ps(v, other.v)}; }
  // See exp8 in avx2/vectors.h.
  Floats16 exp() const {
    __m512 x = _mm512_min_ps(_mm512_set1_ps(88.0f), v);
    x = _mm512_max_ps(_mm512_set1_ps(-87.3f), x);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.0f / 5040);
    for (float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
      y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(coefficient));
    }
    return {_mm512_scalef_ps(y, n)};
  }
  float largest() const { return _mm512_reduce_max_ps(v); }
  float sum() const { return _mm512_reduce_add_ps(v); }
};

}  // namespace
}  // namespace ncl
