// Intrinsics that SIMDe 0.7.4 lacks, as loops over lanes, from their pseudocode in Intel's guide. A
// macro covers the compiler's function of the same name, which is refused without its flag: if a
// kernel needs an intrinsic that is not here, the error names it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace proof {

template <class To, class From>
inline To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T, int count>
struct Lanes {
  T at[count];
};

template <class T, class Vector>
inline auto lanes(const Vector& v) {
  return bits<Lanes<T, sizeof(Vector) / sizeof(T)>>(v);
}

// A vector whose lane i, of type To, is f(lane i of `from`, of type From).
template <class Vector, class From, class To, class Source, class F>
inline Vector each_lane(const Source& from, F&& f) {
  const auto in = lanes<From>(from);
  Lanes<To, sizeof(Vector) / sizeof(To)> out;
  static_assert(sizeof in / sizeof(From) == sizeof out / sizeof(To));
  for (size_t i = 0; i < sizeof out / sizeof(To); ++i) out.at[i] = f(in.at[i]);
  return bits<Vector>(out);
}

template <class Vector, class From, class To, class Source>
inline Vector convert(const Source& from) {
  return each_lane<Vector, From, To>(from, [](From lane) { return static_cast<To>(lane); });
}

// In the current rounding mode; what does not fit becomes the smallest integer.
inline int32_t rounded(float v) {
  const float nearest = std::nearbyint(v);
  return nearest >= -0x1p31f && nearest < 0x1p31f ? static_cast<int32_t>(nearest) : INT32_MIN;
}

// In halves, as the compiler's own functions do it: the order of a sum of floats is visible.
template <class T, class Vector, class F>
inline T reduce(const Vector& v, F&& f) {
  auto all = lanes<T>(v);
  for (size_t width = sizeof(Vector) / sizeof(T) / 2; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) all.at[i] = f(all.at[i], all.at[i + width]);
  }
  return all.at[0];
}

// A lane that is masked out is not touched: it may lie outside of the memory.
template <class T, class Vector, class Mask>
inline Vector load_masked(const Vector& otherwise, Mask mask, const void* from) {
  auto all = lanes<T>(otherwise);
  for (size_t i = 0; i < sizeof(Vector) / sizeof(T); ++i) {
    if (mask >> i & 1)
      std::memcpy(&all.at[i], static_cast<const char*>(from) + i * sizeof(T), sizeof(T));
  }
  return bits<Vector>(all);
}

template <class T, class Vector, class Mask>
inline void store_masked(void* to, Mask mask, const Vector& v) {
  const auto all = lanes<T>(v);
  for (size_t i = 0; i < sizeof(Vector) / sizeof(T); ++i) {
    if (mask >> i & 1) std::memcpy(static_cast<char*>(to) + i * sizeof(T), &all.at[i], sizeof(T));
  }
}

inline __m512 from_halves(__m256i fp16) {
  alignas(64) float out[16];
  _mm256_store_ps(out, _mm256_cvtph_ps(_mm256_castsi256_si128(fp16)));
  _mm256_store_ps(out + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(fp16, 1)));
  return _mm512_load_ps(out);
}

// sum + the products of the narrow lanes A and B that lie in each 32-bit lane, modulo 2^32.
template <class A, class B, class Vector>
inline Vector add_products(const Vector& sum, const Vector& a, const Vector& b) {
  auto sums = lanes<uint32_t>(sum);
  const auto x = lanes<A>(a);
  const auto y = lanes<B>(b);
  for (size_t i = 0; i < sizeof(Vector) / sizeof(A); ++i) {
    sums.at[i * sizeof(A) / 4] += static_cast<uint32_t>(x.at[i] * y.at[i]);
  }
  return bits<Vector>(sums);
}

constexpr auto greater = [](auto a, auto b) { return a > b ? a : b; };
constexpr auto smaller = [](auto a, auto b) { return a < b ? a : b; };
constexpr auto plus = [](auto a, auto b) { return static_cast<decltype(a)>(a + b); };

}  // namespace proof

// clang-format off
#undef _mm512_reduce_max_ps
#define _mm512_reduce_max_ps(v) proof::reduce<float>(v, proof::greater)
#undef _mm512_reduce_min_ps
#define _mm512_reduce_min_ps(v) proof::reduce<float>(v, proof::smaller)
#undef _mm512_reduce_add_ps
#define _mm512_reduce_add_ps(v) proof::reduce<float>(v, proof::plus)
#undef _mm512_reduce_add_epi32
#define _mm512_reduce_add_epi32(v) static_cast<int>(proof::reduce<uint32_t>(v, proof::plus))

#undef _mm512_mask_loadu_ps
#define _mm512_mask_loadu_ps(v, mask, from) proof::load_masked<float>(v, mask, from)
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps(mask, from) proof::load_masked<float>(_mm512_setzero_ps(), mask, from)
#undef _mm512_maskz_loadu_epi8
#define _mm512_maskz_loadu_epi8(mask, from) proof::load_masked<int8_t>(_mm512_setzero_si512(), mask, from)
#undef _mm512_maskz_loadu_epi16
#define _mm512_maskz_loadu_epi16(mask, from) proof::load_masked<int16_t>(_mm512_setzero_si512(), mask, from)
#undef _mm512_maskz_loadu_epi32
#define _mm512_maskz_loadu_epi32(mask, from) proof::load_masked<int32_t>(_mm512_setzero_si512(), mask, from)
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps(to, mask, v) proof::store_masked<float>(to, mask, v)
#undef _mm512_mask_storeu_epi8
#define _mm512_mask_storeu_epi8(to, mask, v) proof::store_masked<int8_t>(to, mask, v)
#undef _mm512_mask_storeu_epi16
#define _mm512_mask_storeu_epi16(to, mask, v) proof::store_masked<int16_t>(to, mask, v)
#undef _mm512_mask_storeu_epi32
#define _mm512_mask_storeu_epi32(to, mask, v) proof::store_masked<int32_t>(to, mask, v)

#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32(v) proof::each_lane<__m512i, float, int32_t>(v, proof::rounded)
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(v) proof::convert<__m512, int32_t, float>(v)
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps(v) proof::from_halves(v)
#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32(v) proof::convert<__m512i, int8_t, int32_t>(v)
#undef _mm512_cvtepu8_epi32
#define _mm512_cvtepu8_epi32(v) proof::convert<__m512i, uint8_t, int32_t>(v)
#undef _mm512_cvtepi16_epi32
#define _mm512_cvtepi16_epi32(v) proof::convert<__m512i, int16_t, int32_t>(v)
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32(v) proof::convert<__m512i, uint16_t, int32_t>(v)
#undef _mm512_cvtepu8_epi16
#define _mm512_cvtepu8_epi16(v) proof::convert<__m512i, uint8_t, int16_t>(v)
#undef _mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi8(v) proof::convert<__m128i, int32_t, int8_t>(v)
#undef _mm512_cvtepi32_epi16
#define _mm512_cvtepi32_epi16(v) proof::convert<__m256i, int32_t, int16_t>(v)
#undef _mm512_srai_epi32
#define _mm512_srai_epi32(v, count) proof::each_lane<__m512i, int32_t, int32_t>(v, [](int32_t lane) { return lane >> ((count) < 32 ? (count) : 31); })

// SIMDe 0.7.4 names it with the arguments of the masked form.
#undef _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) proof::add_products<int16_t, int16_t>(_mm512_setzero_si512(), a, b)

// AVX-VNNI: the encoding for CPUs without AVX-512.
#undef _mm_dpbusd_avx_epi32
#define _mm_dpbusd_avx_epi32(sum, a, b) proof::add_products<uint8_t, int8_t>(sum, a, b)
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32(sum, a, b) proof::add_products<uint8_t, int8_t>(sum, a, b)
#undef _mm256_dpwssd_avx_epi32
#define _mm256_dpwssd_avx_epi32(sum, a, b) proof::add_products<int16_t, int16_t>(sum, a, b)
// clang-format on
