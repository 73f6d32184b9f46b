// Packed weights times rows of bytes by vpdpbusd in 512 bits.

#include <immintrin.h>

#include <cstring>

#include "kernels/avx512_vnni/avx512_vnni.h"
#include "kernels/integer_tiles.h"

namespace ncl::avx512_vnni {
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
  static Floats scaled(Ints dot, float scale) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(scale));
  }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
};

template <WeightType type>
struct VnniProduct {
  static constexpr int kZero = type == WeightType::kInt4 ? 8 : 128;
  static constexpr bool kSumsStart = true;
  static __m512i bytes(__m512i codes) {  // unsigned
    return type == WeightType::kInt4
               ? codes
               : _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static __m512i add(__m512i sum, __m512i weights, __m512i x) {
    return _mm512_dpbusd_epi32(sum, weights, x);
  }
  template <int factor>
  static __m512i dot(__m512i sum) {
    return factor == 1 ? sum : _mm512_slli_epi32(sum, 8);
  }
};

// Row tiles and rows that share registers (docs/design.md has the figures of others).
template <int planes>
constexpr Shape kFewRows = planes == 1 ? Shape{2, 4} : Shape{2, 2};
template <int planes>
constexpr Shape kManyRows = planes == 1 ? Shape{4, 3} : Shape{3, 2};

// So many rows read the codes as they lie: unpacking is paid off by more.
constexpr int kMostFew = 24;

template <int planes>
void multiply(const Matrix& m, int begin, int end, const Activations& activations, Output out,
              Scratch scratch) {
  const ByteRows<planes> x = byte_rows<planes>(activations);
  const auto with_type = [&](auto type) {
    using Product = VnniProduct<type.value>;
    if (x.rows <= kMostFew) {
      multiply_few<Registers512, Product, type.value, kFewRows<planes>>(m, begin, end, x, out,
                                                                        scratch);
    } else {
      multiply_many<Registers512, Product, type.value, kManyRows<planes>>(m, begin, end, x, out,
                                                                          scratch);
    }
  };
  m.type == WeightType::kInt4 ? with_type(Constant<WeightType::kInt4>{})
                              : with_type(Constant<WeightType::kInt8>{});
}

}  // namespace

size_t product_scratch(int rows, int cols) {
  return tiles_scratch(rows, cols, std::max(kFewRows<1>.tiles, kManyRows<1>.tiles));
}

void integer_product(const Matrix& m, int begin, int end, const Activations& x, Output out,
                     Scratch scratch) {
  x.type == ComputeType::kInt8 ? multiply<1>(m, begin, end, x, out, scratch)
                               : multiply<2>(m, begin, end, x, out, scratch);
}

}  // namespace ncl::avx512_vnni
