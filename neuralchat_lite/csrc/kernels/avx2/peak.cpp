// The instructions of this set's products, in registers alone.

#include "kernels/peak.h"

#include <immintrin.h>

#include "kernels/avx2/avx2.h"

namespace ncl::avx2 {
namespace {

using Sum = Words<32>;

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

constexpr Instruction kIntegers = {"avx2", "vpmaddwd", run_vpmaddwd};
constexpr Instruction kFloats = {"avx2", "vfmadd231ps", run_vfmadd231ps};

}  // namespace

const Instruction& instruction(WeightType weights, ComputeType compute) {
  return !is_packed(weights) || compute == ComputeType::kFp32 ? kFloats : kIntegers;
}

}  // namespace ncl::avx2
