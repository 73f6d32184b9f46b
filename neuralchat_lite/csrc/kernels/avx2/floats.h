// Eight floats in a register, for kernels that are templates on a vector type.
#pragma once

#include <immintrin.h>

#include "kernels/avx2/vectors.h"
#include "kernels/kv_layout.h"

namespace ncl {
namespace {

struct Floats8 {
  static constexpr int kWidth = 8;
  static constexpr int kQueries = 4;  // that attention takes at once
  static constexpr int kSums = 8;     // registers that it adds up in

  __m256 v;

  static Floats8 zero() { return {_mm256_setzero_ps()}; }
  static Floats8 set(float value) { return {_mm256_set1_ps(value)}; }
  static Floats8 load(const float* values) { return {_mm256_loadu_ps(values)}; }
  void store(float* to) const { _mm256_storeu_ps(to, v); }

  // Elements index .. index + 8 of keys or values.
  template <KVType type>
  static Floats8 load(const void* data, size_t index) {
    if constexpr (type == KVType::kInt8) {
      const auto* bytes = static_cast<const uint8_t*>(data) + index;
      const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
      return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight))};
    } else {
      return {load8<type == KVType::kFp32 ? FloatType::kFp32 : FloatType::kBf16>(data, index)};
    }
  }

  static Floats8 fma(Floats8 a, Floats8 b, Floats8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  // `value`, but 0 in the places where x equals y.
  static Floats8 zero_where(Floats8 x, float y, Floats8 value) {
    const __m256 equal = _mm256_cmp_ps(x.v, _mm256_set1_ps(y), _CMP_EQ_OQ);
    return {_mm256_andnot_ps(equal, value.v)};
  }
  Floats8 operator+(Floats8 other) const { return {_mm256_add_ps(v, other.v)}; }
  Floats8 operator-(Floats8 other) const { return {_mm256_sub_ps(v, other.v)}; }
  Floats8 operator*(Floats8 other) const { return {_mm256_mul_ps(v, other.v)}; }
  Floats8 max(Floats8 other) const { return {_mm256_max_ps(v, other.v)}; }
  Floats8 exp() const { return {exp8(v)}; }
  float largest() const { return max8(v); }
  float sum() const { return sum8(v); }
};

}  // namespace
}  // namespace ncl
