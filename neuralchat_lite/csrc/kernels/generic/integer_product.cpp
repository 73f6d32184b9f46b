// Every kernel in portable scalar C++: runs anywhere, and reads as the definition of the others.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/round_to_nearest.h"
#include "kernels/scalar.h"

namespace ncl {
namespace {

void rms_norm(const float* x, const float* weight, float eps, int n, float* out) {
  double squares = 0;
  for (int i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
  const float scale = 1.0f / std::sqrt(static_cast<float>(squares / n) + eps);
  for (int i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void silu_gate(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void quantize_row(const float* x, int cols, int limit, IntegerRows& out, int row) {
  static const int kPlace[4] = {0, 2, 1, 3};
  int16_t* values = out.values.data() + static_cast<size_t>(row) * out.blocks * kColumnBlock;
  for (int block = 0; block < out.blocks; ++block, values += kColumnBlock) {
    const int begin = block * kColumnBlock, count = std::min(kColumnBlock, cols - begin);
    float largest = 0;
    bool finite = true;
    for (int i = 0; i < count; ++i) {
      finite = finite && std::isfinite(x[begin + i]);
      largest = std::max(largest, std::fabs(x[begin + i]));
    }
    const float inverse = finite && largest > 0 ? limit / largest : 0.0f;
    // A block of subnormals has no inverse in fp32; it is worth nothing beside a normal number.
    const bool usable = finite && std::isfinite(inverse);
    int32_t sum = 0;
    for (int i = 0; i < kColumnBlock; ++i) {
      const float scaled = usable && i < count ? x[begin + i] * inverse : 0.0f;
      const int value = std::clamp(static_cast<int>(std::nearbyint(scaled)), -limit, limit);
      values[i / 4 * 4 + kPlace[i % 4]] = static_cast<int16_t>(value);
      sum += value;
    }
    const size_t at = static_cast<size_t>(row) * out.blocks + block;
    out.scales[at] = finite ? largest / limit : std::numeric_limits<float>::quiet_NaN();
    out.sums[at] = sum;
  }
}

void integer_product(const Matrix& m, int begin, int end, const IntegerRows& x, Output out) {
  static const int kPlace[4] = {0, 2, 1, 3};
  int weights[kColumnBlock][kRowTile];
  std::vector<float> sums(static_cast<size_t>(x.rows) * kRowTile);
  for (int tile = begin; tile < end; ++tile) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int block = 0; block < m.blocks(); ++block) {
      unpack_block(m, tile, block, weights);
      const size_t group =
          (static_cast<size_t>(tile) * m.groups() + block / m.blocks_per_group) * kRowTile;
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
    }
    const int count = std::min(kRowTile, m.rows - tile * kRowTile);
    for (int row = 0; row < x.rows; ++row) {
      store_output(m, out, row, tile * kRowTile, count, &sums[row * kRowTile]);
    }
  }
}

void float_product(const Matrix& m, int begin, int end, const float* x, int rows, Output out) {
  int weights[kColumnBlock][kRowTile];
  std::vector<float> sums(static_cast<size_t>(rows) * kRowTile);
  for (int tile = begin; tile < end; ++tile) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int block = 0; block < m.blocks(); ++block) {
      unpack_block(m, tile, block, weights);
      const size_t group =
          (static_cast<size_t>(tile) * m.groups() + block / m.blocks_per_group) * kRowTile;
      const int first = block * kColumnBlock, count = std::min(kColumnBlock, m.cols - first);
      for (int lane = 0; lane < kRowTile; ++lane) {
        const float scale = load_float(m.scales, m.scale_type, group + lane);
        for (int row = 0; row < rows; ++row) {
          const float* values = x + static_cast<size_t>(row) * m.cols + first;
          float dot = 0;
          for (int column = 0; column < count; ++column) {
            dot += scale * static_cast<float>(weights[column][lane]) * values[column];
          }
          sums[row * kRowTile + lane] += dot;
        }
      }
    }
    const int count = std::min(kRowTile, m.rows - tile * kRowTile);
    for (int row = 0; row < rows; ++row) {
      store_output(m, out, row, tile * kRowTile, count, &sums[row * kRowTile]);
    }
  }
}

void dense_product(const Matrix& m, int begin, int end, const float* x, int rows, Output out) {
  const FloatType type = m.type == WeightType::kFp32   ? FloatType::kFp32
                         : m.type == WeightType::kBf16 ? FloatType::kBf16
                                                       : FloatType::kFp16;
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
}

// Softmax(q . k) . v with a running maximum, so that one pass over the keys is enough.
void attend(const AttentionTask& task) {
  const int dim = task.head_dim;
  for (int q = 0; q < task.count; ++q) {
    float largest = -std::numeric_limits<float>::infinity(), total = 0;
    std::vector<float> sums(dim, 0.0f);
    for (int position = task.first[q]; position <= task.last[q]; ++position) {
      const int slot = position % task.capacity;
      const size_t key = static_cast<size_t>(slot / kKeyBlock) * dim * kKeyBlock + slot % kKeyBlock;
      float score = 0;
      for (int i = 0; i < dim; ++i) {
        score += task.queries[q][i] *
                 load_float(task.keys, task.cache_type, key + static_cast<size_t>(i) * kKeyBlock);
      }
      // Not std::max: a NaN score must not be lost.
      const float maximum = score <= largest ? largest : score;
      const float shrink = std::exp(largest - maximum), weight = std::exp(score - maximum);
      total = total * shrink + weight;
      for (int i = 0; i < dim; ++i) {
        sums[i] = sums[i] * shrink + weight * load_float(task.values, task.cache_type,
                                                         static_cast<size_t>(slot) * dim + i);
      }
      largest = maximum;
    }
    for (int i = 0; i < dim; ++i) task.outputs[q][i] = sums[i] / total;
  }
}

bool round_rows(const Rounding& op, int tile) {
  return round_tile(op, tile,
                    [](const void* data, FloatType type, size_t index, int count, float* out) {
                      for (int i = 0; i < count; ++i) out[i] = load_float(data, type, index + i);
                    });
}

uint64_t read_all(const void* data, size_t n) {
  const uint64_t* words = static_cast<const uint64_t*>(data);
  uint64_t a = 0, b = 0, c = 0, d = 0;
  for (size_t i = 0; i + 4 <= n / 8; i += 4) {
    a ^= words[i], b ^= words[i + 1], c ^= words[i + 2], d ^= words[i + 3];
  }
  return a ^ b ^ c ^ d;
}

const Kernels kTable = {
    "generic",     rms_norm,      silu_gate, quantize_row, integer_product,
    float_product, dense_product, attend,    round_rows,   read_all,
};

}  // namespace

const Kernels* generic_kernels() { return &kTable; }

}  // namespace ncl
