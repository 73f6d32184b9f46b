// Registers of 512 bits, as vnni_products.h wants them.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/layout.h"

namespace ncl {
namespace {

struct Registers512 {
  using Ints = __m512i;
  using Floats = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;

  static Ints zero() { return _mm512_setzero_si512(); }
  static Ints set(int32_t value) { return _mm512_set1_epi32(value); }
  static Ints load(const void* from) { return _mm512_loadu_si512(from); }
  static void store(void* to, Ints v) { _mm512_storeu_si512(to, v); }
  static Ints broadcast(const void* four_bytes) {
    int32_t word;
    std::memcpy(&word, four_bytes, 4);
    return _mm512_set1_epi32(word);
  }
  static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
  template <int bits>
  static Ints shift_left(Ints v) {
    return _mm512_slli_epi32(v, bits);
  }
  static Ints low_nibbles(Ints v) { return _mm512_and_si512(v, _mm512_set1_epi8(0xf)); }
  static Ints high_nibbles(Ints v) {
    return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(0xf));
  }

  // See avx2/registers.h.
  static Ints zero_pairs(const int8_t* zeros, int more) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
    const Ints zero = add(_mm512_cvtepi8_epi32(bytes), set(more));
    return _mm512_or_si512(_mm512_and_si512(zero, set(0xffff)), _mm512_slli_epi32(zero, 23));
  }
  static Ints times_sum(Ints zero_pairs, int32_t sum) {
    const uint32_t high = static_cast<uint32_t>(sum >> 7) << 16;
    return _mm512_madd_epi16(zero_pairs, set(static_cast<int32_t>(high | (sum & 127))));
  }

  static Floats load_floats(const float* from) { return _mm512_loadu_ps(from); }
  static void store_floats(float* to, Floats v) { _mm512_storeu_ps(to, v); }
  template <FloatType type>
  static Floats load_scales(const void* scales, size_t at) {
    if constexpr (type == FloatType::kFp32) {
      return _mm512_loadu_ps(static_cast<const float*>(scales) + at);
    } else {
      const __m256i halves = _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(scales) + at));
      return type == FloatType::kFp16
                 ? _mm512_cvtph_ps(halves)
                 : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    }
  }
  // Minima as floats, given the scales of the same groups.
  template <Scheme scheme, FloatType type>
  static Floats load_minima(const void* minima, size_t at, Floats scales) {
    if constexpr (scheme == Scheme::kAffine) return load_scales<type>(minima, at);
    const Ints bytes = _mm512_cvtepi8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const int8_t*>(minima) + at)));
    const Floats eighths = _mm512_mul_ps(_mm512_cvtepi32_ps(bytes), _mm512_set1_ps(0.125f));
    return _mm512_mul_ps(scales, _mm512_sub_ps(eighths, _mm512_set1_ps(8.0f)));
  }
  static Floats scaled(Ints dot, float scale) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(scale));
  }
  // In every lane: the sum of a row's integers in a block, times their scale.
  static Floats scaled_sum(int32_t sum, float scale) {
    return _mm512_set1_ps(static_cast<float>(sum) * scale);
  }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Ints flip_signs(Ints bytes) {
    return _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static Ints add_products(Ints sum, Ints weights, Ints x) {
    return _mm512_dpbusd_epi32(sum, weights, x);
  }
};

}  // namespace
}  // namespace ncl
