// Row-major float weights times fp32 activations, along the columns.

#include <algorithm>

#include "kernels/dispatch.h"
#include "kernels/generic/generic.h"

namespace ncl::generic {

void dense_product(const Matrix& m, int begin, int end, const float* x, int rows, Output out) {
  with_dense_type(m, [&](auto type) {
    const int last = std::min(end * kRowTile, m.rows);
    for (int output = begin * kRowTile; output < last; ++output) {
      for (int row = 0; row < rows; ++row) {
        const float* values = x + static_cast<size_t>(row) * m.cols;
        float sum = 0;
        for (int first = 0; first < m.cols; first += kColumnBlock) {
          const int stop = std::min(first + kColumnBlock, m.cols);
          float part = 0;  // of one block, so that a long row loses little precision
          for (int column = first; column < stop; ++column) {
            part += load_float(m.data, type, static_cast<size_t>(output) * m.cols + column) *
                    values[column];
          }
          sum += part;
        }
        store_output(m, out, row, output, 1, &sum);
      }
    }
  });
}

}  // namespace ncl::generic
