#include "kernels/avx512_vnni/avx512_vnni.h"
#include "kernels/avx512_vnni/registers.h"
#include "kernels/vnni_products.h"

namespace ncl::avx512_vnni {
namespace {

// docs/design.md has the figures of others.
struct Tuning {
  template <int planes>
  static constexpr Shape kFewRows = planes == 1 ? Shape{2, 4} : Shape{2, 2};
  template <int planes>
  static constexpr Shape kManyRows = planes == 1 ? Shape{4, 3} : Shape{3, 2};
  static constexpr int kMostFew = 24;
};

}  // namespace

size_t product_scratch(int rows, int cols) { return tiles_scratch<Tuning>(rows, cols); }

void integer_product(const Matrix& m, int begin, int end, const Activations& x, Output out,
                     Scratch scratch) {
  multiply_vnni<Registers512, Tuning>(m, begin, end, x, out, scratch);
}

}  // namespace ncl::avx512_vnni
