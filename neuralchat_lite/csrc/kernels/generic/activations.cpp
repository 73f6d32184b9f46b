// Activations in 16 bits: see sixteen_bit_rows.h.

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/generic/generic.h"
#include "kernels/sixteen_bit_rows.h"

namespace ncl::generic {

size_t activation_bytes(int rows, int cols, ComputeType type) {
  return sixteen_bit_bytes(rows, cols, type);
}

void write_activation_row(const float* x, const Activations& out, int row) {
  static const int kPlace[4] = {0, 2, 1, 3};
  const SixteenBitRows to = sixteen_bit_rows(out);
  const int limit = largest_integer(out.type);
  int16_t* values = to.row_values(row);
  for (int block = 0; block < to.blocks; ++block, values += kColumnBlock) {
    const int begin = block * kColumnBlock, count = std::min(kColumnBlock, out.cols - begin);
    float largest = 0;
    bool finite = true;
    for (int i = 0; i < count; ++i) {
      finite = finite && std::isfinite(x[begin + i]);
      largest = std::max(largest, std::fabs(x[begin + i]));
    }
    const float inverse = finite && largest > 0 ? limit / largest : 0.0f;
    // A block of subnormals has no inverse in fp32. It is negligible, so its values become 0.
    const bool usable = finite && std::isfinite(inverse);
    int32_t sum = 0;
    for (int i = 0; i < kColumnBlock; ++i) {
      const float scaled = usable && i < count ? x[begin + i] * inverse : 0.0f;
      const int value = std::clamp(static_cast<int>(std::nearbyint(scaled)), -limit, limit);
      values[i / 4 * 4 + kPlace[i % 4]] = static_cast<int16_t>(value);
      sum += value;
    }
    to.row_scales(row)[block] = finite ? largest / limit : std::numeric_limits<float>::quiet_NaN();
    to.row_sums(row)[block] = sum;
  }
}

}  // namespace ncl::generic
