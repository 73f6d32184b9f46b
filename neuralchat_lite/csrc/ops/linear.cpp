#include "ops/linear.h"

#include <algorithm>

namespace ncl {
namespace {

// With fewer multiplications, one thread is done before others wake up (a few microseconds).
constexpr int64_t kAloneBelow = 1 << 16;

// Multiplies row tiles [begin, end), numbered through all parts. `x` are the activations in fp32.
// `formatted` are the same in the kernels' format; its data may be null.
void multiply_tiles(const Linear& op, const Kernels& kernels, const float* x,
                    const Activations& formatted, int begin, int end, Scratch scratch) {
  int first_tile = 0, first_row = 0;
  for (const Matrix& part : op.projection->parts) {
    const int from = std::max(begin - first_tile, 0);
    const int to = std::min(end - first_tile, part.row_tiles());
    if (from < to) {
      const Output out{op.out + first_row, op.projection->rows, op.accumulate};
      if (!is_packed(part.type)) {
        kernels.dense_product(part, from, to, x, op.rows, out);
      } else if (formatted.data) {
        kernels.integer_product(part, from, to, formatted, out, scratch);
      } else {
        kernels.float_product(part, from, to, x, op.rows, out, scratch);
      }
    }
    first_tile += part.row_tiles();
    first_row += part.rows;
  }
}

}  // namespace

bool Projection::has_packed() const {
  return std::any_of(parts.begin(), parts.end(),
                     [](const Matrix& part) { return is_packed(part.type); });
}

void linear(Runtime& rt, const Linear& op) {
  const Kernels& kernels = *rt.kernels;
  const Projection& projection = *op.projection;
  const int cols = projection.cols;

  const bool changed = op.norm_weight || op.gate != Activation::kNone;
  float* own_rows = nullptr;
  if (changed) {
    own_rows = static_cast<float*>(rt.rows.reserve(sizeof(float) * op.rows * cols));
  }
  const float* x = changed ? own_rows : op.x;
  Activations formatted{op.rows, cols, projection.compute, nullptr};
  if (projection.has_packed()) {
    const size_t bytes = kernels.activations.bytes(op.rows, cols, projection.compute);
    if (bytes) formatted.data = rt.activations.reserve(bytes);
  }

  if (changed || formatted.data) {
    rt.run(op.rows, 0, [&](int row, Scratch) {
      const size_t at = static_cast<size_t>(row) * cols;
      if (op.norm_weight) {
        kernels.rms_norm(op.x + at, op.norm_weight, op.eps, cols, own_rows + at);
      } else if (op.gate == Activation::kSilu) {
        const float* gate = op.x + 2 * at;
        kernels.silu_gate(gate, gate + cols, cols, own_rows + at);
      }
      if (formatted.data) kernels.activations.write_row(x + at, formatted, row);
    });
  }

  int tiles = 0;
  for (const Matrix& part : projection.parts) tiles += part.row_tiles();
  // Several items for each thread, so that others take over the items of a delayed one. One item in
  // all where waking threads would take longer than the work.
  const int64_t work = static_cast<int64_t>(op.rows) * projection.rows * cols;
  const int items = work < kAloneBelow ? 1 : 8 * rt.pool().threads();
  const int step = std::max(1, (tiles + items - 1) / items);
  const auto scratch_of =
      formatted.data ? kernels.scratch.integer_product : kernels.scratch.float_product;
  rt.run((tiles + step - 1) / step, scratch_of(op.rows, cols), [&](int item, Scratch scratch) {
    multiply_tiles(op, kernels, x, formatted, item * step, std::min(tiles, (item + 1) * step),
                   scratch);
  });
}

}  // namespace ncl
