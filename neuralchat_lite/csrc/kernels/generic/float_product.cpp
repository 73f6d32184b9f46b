// Packed weights times fp32 activations, all in fp32.

#include <algorithm>

#include "kernels/dispatch.h"
#include "kernels/generic/generic.h"

namespace ncl::generic {

void float_product(const Matrix& m, int begin, int end, const float* x, int rows, Output out,
                   Scratch scratch) {
  float* sums = take<float>(scratch, panel_sums(rows));
  int weights[kColumnBlock][kRowTile];
  walk_panels<1>(m, begin, end, rows, sums, out, [&](int tile, int block, int) {
    unpack_block(m, tile, block, weights);
    const size_t group = group_index(m, tile, block);
    const int first = block * kColumnBlock, count = std::min(kColumnBlock, m.cols - first);
    for (int lane = 0; lane < kRowTile; ++lane) {
      const float scale = load_float(m.scales, m.scale_type, group + lane);
      const float minimum = group_minimum(m, group + lane, scale);
      for (int row = 0; row < rows; ++row) {
        const float* values = x + static_cast<size_t>(row) * m.cols + first;
        float dot = 0;
        for (int column = 0; column < count; ++column) {
          const float product = scale * static_cast<float>(weights[column][lane]);
          dot += (m.minima ? product + minimum : product) * values[column];
        }
        sums[row * kRowTile + lane] += dot;
      }
    }
  });
}

}  // namespace ncl::generic
