// Packed weights times activations in 16 bits: sums of a block in integers, of blocks in fp32.

#include "kernels/dispatch.h"
#include "kernels/generic/generic.h"
#include "kernels/sixteen_bit_rows.h"

namespace ncl::generic {

size_t product_scratch(int rows, int) { return scratch_bytes<float>(panel_sums(rows)); }

void integer_product(const Matrix& m, int begin, int end, const Activations& activations,
                     Output out, Scratch scratch) {
  static const int kPlace[4] = {0, 2, 1, 3};
  const SixteenBitRows x = sixteen_bit_rows(activations);
  float* sums = take<float>(scratch, panel_sums(x.rows));
  int weights[kColumnBlock][kRowTile];
  walk_panels<1>(m, begin, end, x.rows, sums, out, [&](int tile, int block, int) {
    unpack_block(m, tile, block, weights);
    const size_t group = group_index(m, tile, block);
    for (int row = 0; row < x.rows; ++row) {
      const int16_t* values = x.row_values(row) + static_cast<size_t>(block) * kColumnBlock;
      const float scale = x.row_scales(row)[block];
      for (int lane = 0; lane < kRowTile; ++lane) {
        int32_t dot = 0;
        for (int column = 0; column < kColumnBlock; ++column) {
          dot += weights[column][lane] * values[column / 4 * 4 + kPlace[column % 4]];
        }
        sums[row * kRowTile + lane] +=
            static_cast<float>(dot) * scale * load_float(m.scales, m.scale_type, group + lane);
      }
    }
  });
}

}  // namespace ncl::generic
