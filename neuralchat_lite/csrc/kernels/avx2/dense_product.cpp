// Row-major float weights times fp32 activations, along the columns.

#include <algorithm>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/vectors.h"
#include "kernels/dispatch.h"

namespace ncl::avx2 {
namespace {

// Row-major weights: `outputs` rows of weights by `rows` rows of activations, along the columns.
template <FloatType type, int outputs, int rows>
void dense_block(const Matrix& m, int output, const float* x, int row, Output out) {
  const size_t stride = m.cols;
  const size_t weights = output * stride;
  const float* values = x + row * stride;
  __m256 sums[outputs][rows];
  for (auto& of_output : sums) std::fill(of_output, of_output + rows, _mm256_setzero_ps());
  int column = 0;
  for (; column + 8 <= m.cols; column += 8) {
    __m256 v[rows];
    for (int r = 0; r < rows; ++r) v[r] = _mm256_loadu_ps(values + r * stride + column);
    for (int o = 0; o < outputs; ++o) {
      const __m256 w = load8<type>(m.data, weights + o * stride + column);
      for (int r = 0; r < rows; ++r) sums[o][r] = _mm256_fmadd_ps(w, v[r], sums[o][r]);
    }
  }
  for (int r = 0; r < rows; ++r) {
    float totals[outputs];
    for (int o = 0; o < outputs; ++o) {
      totals[o] = sum8(sums[o][r]);
      for (int c = column; c < m.cols; ++c) {
        totals[o] += load_float(m.data, type, weights + o * stride + c) * values[r * stride + c];
      }
    }
    store_output(m, out, row + r, output, outputs, totals);
  }
}

template <FloatType type>
[[gnu::noinline]] void dense_rows(const Matrix& m, int begin, int end, const float* x, int x_rows,
                                  Output out) {
  const int first = begin * kRowTile, last = std::min(end * kRowTile, m.rows);
  in_row_steps<4>(last - first, [&](auto outputs, int output) {
    in_row_steps<2>(x_rows, [&](auto rows, int row) {
      dense_block<type, outputs.value, rows.value>(m, first + output, x, row, out);
    });
  });
}

}  // namespace

void dense_product(const Matrix& m, int begin, int end, const float* x, int rows, Output out) {
  with_dense_type(m, [&](auto type) { dense_rows<type.value>(m, begin, end, x, rows, out); });
}

}  // namespace ncl::avx2
