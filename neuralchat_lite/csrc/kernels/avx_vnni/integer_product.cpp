// Packed weights times rows of bytes by vpdpbusd in 256 bits.

#include "kernels/avx2/registers.h"
#include "kernels/avx_vnni/avx_vnni.h"
#include "kernels/integer_tiles.h"

namespace ncl::avx_vnni {
namespace {

template <WeightType type>
struct VnniProduct {
  static constexpr int kZero = type == WeightType::kInt4 ? 8 : 128;
  static constexpr bool kSumsStart = true;
  static __m256i bytes(__m256i codes) {  // unsigned
    return type == WeightType::kInt4
               ? codes
               : _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(0x80)));
  }
  static __m256i add(__m256i sum, __m256i weights, __m256i x) {
    return _mm256_dpbusd_avx_epi32(sum, weights, x);
  }
  template <int factor>
  static __m256i dot(__m256i sum) {
    return factor == 1 ? sum : _mm256_slli_epi32(sum, 8);
  }
};

// Row tiles and rows that share registers.
template <int planes>
constexpr Shape kFewRows = planes == 1 ? Shape{2, 2} : Shape{2, 1};
template <int planes>
constexpr Shape kManyRows = planes == 1 ? Shape{1, 4} : Shape{1, 2};

// So many rows read the codes as they lie: unpacking is paid off by more.
constexpr int kMostFew = 3;

template <int planes>
void multiply(const Matrix& m, int begin, int end, const Activations& activations, Output out,
              Scratch scratch) {
  const ByteRows<planes> x = byte_rows<planes>(activations);
  const auto with_type = [&](auto type) {
    using Product = VnniProduct<type.value>;
    if (x.rows <= kMostFew) {
      multiply_few<Registers256, Product, type.value, kFewRows<planes>>(m, begin, end, x, out,
                                                                        scratch);
    } else {
      multiply_many<Registers256, Product, type.value, kManyRows<planes>>(m, begin, end, x, out,
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

}  // namespace ncl::avx_vnni
