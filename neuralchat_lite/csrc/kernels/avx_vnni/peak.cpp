// The instruction of this set's products, in registers alone.

#include "kernels/peak.h"

#include <immintrin.h>

#include "kernels/avx2/avx2.h"
#include "kernels/avx_vnni/avx_vnni.h"

namespace ncl::avx_vnni {
namespace {

using Sum = Words<32>;

// 32 products of bytes. Activations of 16 bits are two planes of bytes.
template <int planes>
uint64_t run_vpdpbusd(uint64_t times) {
  const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
  return run_in_registers<12, Sum>(times, 2 * 32 / planes, [&](Sum& sum) {
    sum = reinterpret_cast<Sum>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sum), a, b));
  });
}

constexpr Instruction kOnePlane = {"avx_vnni", "vpdpbusd", run_vpdpbusd<1>};
constexpr Instruction kTwoPlanes = {"avx_vnni", "vpdpbusd", run_vpdpbusd<2>};

}  // namespace

const Instruction& instruction(WeightType weights, ComputeType compute) {
  if (!is_packed(weights) || compute == ComputeType::kFp32) {
    return avx2::instruction(weights, compute);
  }
  return compute == ComputeType::kInt8 ? kOnePlane : kTwoPlanes;
}

}  // namespace ncl::avx_vnni
