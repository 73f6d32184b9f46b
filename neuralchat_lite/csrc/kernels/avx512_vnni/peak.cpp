// The instruction of this set's products, in registers alone.

#include "kernels/peak.h"

#include <immintrin.h>

#include "kernels/avx2/avx2.h"
#include "kernels/avx512_vnni/avx512_vnni.h"

namespace ncl::avx512_vnni {
namespace {

using Sum = Words<64>;

// 64 products of bytes. Activations of 16 bits are two planes of bytes.
template <int planes>
uint64_t run_vpdpbusd(uint64_t times) {
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  return run_in_registers<12, Sum>(times, 2 * 64 / planes, [&](Sum& sum) {
    sum = reinterpret_cast<Sum>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), a, b));
  });
}

constexpr Instruction kOnePlane = {"avx512_vnni", "vpdpbusd", run_vpdpbusd<1>};
constexpr Instruction kTwoPlanes = {"avx512_vnni", "vpdpbusd", run_vpdpbusd<2>};

}  // namespace

const Instruction& instruction(WeightType weights, ComputeType compute) {
  if (!is_packed(weights) || compute == ComputeType::kFp32) {
    return avx2::instruction(weights, compute);
  }
  return compute == ComputeType::kInt8 ? kOnePlane : kTwoPlanes;
}

}  // namespace ncl::avx512_vnni
