// Reading memory, and nothing else.

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/vectors.h"

namespace ncl::avx2 {

uint64_t read_all(const void* data, size_t n) {
  __m256i parts[4] = {};
  const auto* from = static_cast<const __m256i*>(data);
  for (size_t i = 0; i + 4 <= n / 32; i += 4) {
    for (int k = 0; k < 4; ++k) {
      parts[k] = _mm256_xor_si256(parts[k], _mm256_loadu_si256(from + i + k));
    }
  }
  const __m256i all =
      _mm256_xor_si256(_mm256_xor_si256(parts[0], parts[1]), _mm256_xor_si256(parts[2], parts[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0)) ^ _mm256_extract_epi64(all, 1) ^
         _mm256_extract_epi64(all, 2) ^ _mm256_extract_epi64(all, 3);
}

}  // namespace ncl::avx2
