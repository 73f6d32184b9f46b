#include "kernels/avx2/registers.h"
#include "kernels/avx_vnni/avx_vnni.h"
#include "kernels/vnni_products.h"

namespace ncl::avx_vnni {
namespace {

struct Registers : Registers256 {
  static Ints flip_signs(Ints bytes) {
    return _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80)));
  }
  static Ints add_products(Ints sum, Ints weights, Ints x) {
    return _mm256_dpbusd_avx_epi32(sum, weights, x);
  }
};

struct Tuning {
  template <int planes>
  static constexpr Shape kFewRows = planes == 1 ? Shape{2, 2} : Shape{2, 1};
  template <int planes>
  static constexpr Shape kManyRows = planes == 1 ? Shape{1, 4} : Shape{1, 2};
  static constexpr int kMostFew = 3;
};

}  // namespace

size_t product_scratch(int rows, int cols) { return tiles_scratch<Tuning>(rows, cols); }

void integer_product(const Matrix& m, int begin, int end, const Activations& x, Output out,
                     Scratch scratch) {
  multiply_vnni<Registers, Tuning>(m, begin, end, x, out, scratch);
}

}  // namespace ncl::avx_vnni
