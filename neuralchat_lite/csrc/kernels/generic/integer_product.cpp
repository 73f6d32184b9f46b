// Packed weights times integer activations: the definition in kernels.h, word for word.

#include <cmath>

#include "kernels/dispatch.h"
#include "kernels/eight_bit_rows.h"
#include "kernels/generic/generic.h"
#include "kernels/sixteen_bit_rows.h"

namespace ncl::generic {
namespace {

template <class Rows>
void multiply(const Matrix& m, int begin, int end, const Rows& x, Output out, Scratch scratch) {
  float* sums = take<float>(scratch, panel_sums(x.rows));
  int weights[kColumnBlock][kRowTile];
  walk_panels<1>(m, begin, end, x.rows, sums, out, [&](int tile, int block, int) {
    unpack_block(m, tile, block, weights);
    const size_t group = group_index(m, tile, block);
    for (int row = 0; row < x.rows; ++row) {
      const auto* values = x.row_values(row) + static_cast<size_t>(block) * kColumnBlock;
      const float scale = x.row_scales(row)[block];
      for (int lane = 0; lane < kRowTile; ++lane) {
        int32_t dot = 0;
        for (int column = 0; column < kColumnBlock; ++column) {
          dot += weights[column][lane] * values[column];
        }
        float& sum = sums[row * kRowTile + lane];
        const float weight_scale = load_float(m.scales, m.scale_type, group + lane);
        sum = std::fma(static_cast<float>(dot) * scale, weight_scale, sum);
        if (m.minima) {
          sum = std::fma(static_cast<float>(x.row_sums(row)[block]) * scale,
                         group_minimum(m, group + lane, weight_scale), sum);
        }
      }
    }
  });
}

}  // namespace

size_t product_scratch(int rows, int) { return scratch_bytes<float>(panel_sums(rows)); }

size_t float_product_scratch(int rows, int) { return scratch_bytes<float>(panel_sums(rows)); }

void integer_product(const Matrix& m, int begin, int end, const Activations& x, Output out,
                     Scratch scratch) {
  x.type == ComputeType::kInt8 ? multiply(m, begin, end, eight_bit_rows(x), out, scratch)
                               : multiply(m, begin, end, sixteen_bit_rows(x), out, scratch);
}

}  // namespace ncl::generic
