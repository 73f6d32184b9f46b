// Registers of 256 bits, as integer_tiles.h wants them.
#pragma once

#include <cstring>

#include "kernels/avx2/vectors.h"

namespace ncl {
namespace {

struct Registers256 {
  using Ints = __m256i;
  using Floats = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;

  static Ints zero() { return _mm256_setzero_si256(); }
  static Ints set(int32_t value) { return _mm256_set1_epi32(value); }
  static Ints load(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static void store(void* to, Ints v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
  static Ints broadcast(const void* four_bytes) {
    int32_t word;
    std::memcpy(&word, four_bytes, 4);
    return _mm256_set1_epi32(word);
  }
  static Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints sub(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
  template <int bits>
  static Ints shift_left(Ints v) {
    return _mm256_slli_epi32(v, bits);
  }
  static Ints low_nibbles(Ints v) { return _mm256_and_si256(v, _mm256_set1_epi8(0xf)); }
  static Ints high_nibbles(Ints v) {
    return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(0xf));
  }

  // zero * sum by a product of 16-bit pairs, as 32-bit ones are slow: (zero, zero * 128) times
  // (sum % 128, sum / 128). Zeros have `more` added.
  static Ints zero_pairs(const int8_t* zeros, int more) {
    const Ints zero = add(load_zeros(zeros), set(more));
    return _mm256_or_si256(_mm256_and_si256(zero, set(0xffff)), _mm256_slli_epi32(zero, 23));
  }
  static Ints times_sum(Ints zero_pairs, int32_t sum) {
    const uint32_t high = static_cast<uint32_t>(sum >> 7) << 16;
    return _mm256_madd_epi16(zero_pairs, set(static_cast<int32_t>(high | (sum & 127))));
  }

  static Floats load_floats(const float* from) { return _mm256_loadu_ps(from); }
  static void store_floats(float* to, Floats v) { _mm256_storeu_ps(to, v); }
  template <FloatType type>
  static Floats load_scales(const void* scales, size_t at) {
    return load8<type>(scales, at);
  }
  // Minima as floats, given the scales of the same groups.
  template <Scheme scheme, FloatType type>
  static Floats load_minima(const void* minima, size_t at, Floats scales) {
    if constexpr (scheme == Scheme::kAffine) return load_scales<type>(minima, at);
    const Ints bytes = load_zeros(static_cast<const int8_t*>(minima) + at);
    const Floats eighths = _mm256_mul_ps(_mm256_cvtepi32_ps(bytes), _mm256_set1_ps(0.125f));
    return _mm256_mul_ps(scales, _mm256_sub_ps(eighths, _mm256_set1_ps(8.0f)));
  }
  static Floats scaled(Ints dot, float scale) {
    return _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(scale));
  }
  // In every lane: the sum of a row's integers in a block, times their scale.
  static Floats scaled_sum(int32_t sum, float scale) {
    return _mm256_set1_ps(static_cast<float>(sum) * scale);
  }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace ncl
