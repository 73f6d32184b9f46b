// The instructions of this set's products, in registers alone.

#include "kernels/peak.h"

#include <immintrin.h>

#include "kernels/avx2/avx2.h"

namespace ncl::avx2 {
namespace {

using Sum = Words<32>;

// A block of nibbles times bytes: 8 times 32 products, added up in 16 bits, then in 32. Activations
// of 16 bits are two planes of bytes.
template <int planes>
uint64_t run_vpmaddubsw(uint64_t times) {
  const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1);
  return run_in_registers<8, Sum>(times, 2 * 8 * 32 / planes, [&](Sum& sum) {
    const auto x = reinterpret_cast<__m256i>(sum);
    __m256i p = _mm256_maddubs_epi16(x, a), q = _mm256_maddubs_epi16(x, b);
    __m256i pairs = _mm256_add_epi16(p, q);
    for (int i = 0; i < 3; ++i) {
      p = _mm256_maddubs_epi16(p, a), q = _mm256_maddubs_epi16(q, b);
      pairs = _mm256_add_epi16(_mm256_add_epi16(pairs, p), q);
    }
    sum = reinterpret_cast<Sum>(_mm256_add_epi32(x, _mm256_madd_epi16(pairs, ones)));
  });
}

// 32 products of signed bytes, widened at once: two full bytes fill 16 bits.
uint64_t run_signed_vpmaddubsw(uint64_t times) {
  const __m256i a = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
  return run_in_registers<10, Sum>(times, 2 * 32, [&](Sum& sum) {
    const auto x = reinterpret_cast<__m256i>(sum);
    const __m256i pairs = _mm256_maddubs_epi16(x, _mm256_sign_epi8(a, x));
    sum = reinterpret_cast<Sum>(_mm256_add_epi32(x, _mm256_madd_epi16(pairs, ones)));
  });
}

// 16 products of 16 bits, added in pairs, and an addition of 32 bits.
uint64_t run_vpmaddwd(uint64_t times) {
  const __m256i a = _mm256_set1_epi16(3);
  return run_in_registers<12, Sum>(times, 2 * 16, [&](Sum& sum) {
    const auto x = reinterpret_cast<__m256i>(sum);
    sum = reinterpret_cast<Sum>(_mm256_add_epi32(x, _mm256_madd_epi16(x, a)));
  });
}

// 8 products in fp32.
uint64_t run_vfmadd231ps(uint64_t times) {
  const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  return run_in_registers<12, __m256>(times, 2 * 8,
                                      [&](__m256& sum) { sum = _mm256_fmadd_ps(a, b, sum); });
}

// [int4, int8 weights][bf16, int8 activations]
constexpr Instruction kIntegers[2][2] = {
    {{"avx2", "vpmaddubsw", run_vpmaddubsw<2>}, {"avx2", "vpmaddubsw", run_vpmaddubsw<1>}},
    {{"avx2", "vpmaddwd", run_vpmaddwd}, {"avx2", "vpmaddubsw", run_signed_vpmaddubsw}},
};
constexpr Instruction kFloats = {"avx2", "vfmadd231ps", run_vfmadd231ps};

}  // namespace

const Instruction& instruction(WeightType weights, ComputeType compute) {
  if (!is_packed(weights) || compute == ComputeType::kFp32) return kFloats;
  return kIntegers[weights == WeightType::kInt8][compute == ComputeType::kInt8];
}

}  // namespace ncl::avx2
