// Activations in 16 bits (sixteen_bit_rows.h) for compute in bf16, in 8 bits (eight_bit_rows.h) for
// compute in int8.

#include "kernels/eight_bit_rows.h"
#include "kernels/generic/generic.h"
#include "kernels/sixteen_bit_rows.h"

namespace ncl::generic {
namespace {

template <class Rows>
void write_row(const float* x, const Activations& out, int row, const Rows& to) {
  const int limit = largest_integer(out.type);
  auto* values = to.row_values(row);
  for (int block = 0; block < to.blocks; ++block, values += kColumnBlock) {
    const int begin = block * kColumnBlock, count = std::min(kColumnBlock, out.cols - begin);
    float largest = 0;
    bool finite = true;
    for (int i = 0; i < count; ++i) {
      finite = finite && std::isfinite(x[begin + i]);
      largest = std::max(largest, std::fabs(x[begin + i]));
    }
    const BlockScales found = block_scales(largest, finite, limit);
    int32_t sum = 0;
    for (int i = 0; i < kColumnBlock; ++i) {
      const float scaled = found.inverse != 0 && i < count ? x[begin + i] * found.inverse : 0.0f;
      const int value = std::clamp(static_cast<int>(std::nearbyint(scaled)), -limit, limit);
      values[i] = static_cast<std::decay_t<decltype(*values)>>(value);
      sum += value;
    }
    to.row_scales(row)[block] = found.scale;
    to.row_sums(row)[block] = sum;
  }
}

}  // namespace

size_t activation_bytes(int rows, int cols, ComputeType type) {
  return type == ComputeType::kInt8 ? eight_bit_bytes(rows, cols)
                                    : sixteen_bit_bytes(rows, cols, type);
}

void write_activation_row(const float* x, const Activations& out, int row) {
  out.type == ComputeType::kInt8 ? write_row(x, out, row, eight_bit_rows(out))
                                 : write_row(x, out, row, sixteen_bit_rows(out));
}

}  // namespace ncl::generic
