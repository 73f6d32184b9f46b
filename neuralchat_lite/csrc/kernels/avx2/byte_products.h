// Products of bytes with AVX2 alone, for integer_tiles.h.
#pragma once

#include "kernels/avx2/registers.h"

namespace ncl {
namespace {

// Keeps the compiler from adding up all products of a block at its end: gcc does, and then stores
// each of them on the stack.
inline void in_order(__m256i& sum) { asm("" : "+x"(sum)); }

// Nibbles as unsigned bytes. The 8 pair sums of a block, 8 * 2 * 15 * 128, are below 2^15: they are
// added up in 16 bits.
struct NibbleProduct {
  static constexpr int kZero = 8;
  static constexpr bool kSumsStart = false;
  static __m256i bytes(__m256i codes) { return codes; }
  static __m256i add(__m256i sum, __m256i weights, __m256i x) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, x));
    in_order(sum);
    return sum;
  }
  template <int factor>
  static __m256i dot(__m256i sum) {
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(factor));
  }
};

// Signed bytes times bytes from -127: |w| * (x with the sign of w). A pair is at most
// 2 * 128 * 127, below 2^15, and widened at once.
struct SignedByteProduct {
  static constexpr int kZero = 0;
  static constexpr bool kSumsStart = true;
  static __m256i bytes(__m256i codes) { return codes; }
  static __m256i add(__m256i sum, __m256i weights, __m256i x) {
    const __m256i pairs =
        _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    in_order(sum);
    return sum;
  }
  template <int factor>
  static __m256i dot(__m256i sum) {
    static_assert(factor == 1, "a second plane may hold -128");
    return sum;
  }
};

}  // namespace
}  // namespace ncl
