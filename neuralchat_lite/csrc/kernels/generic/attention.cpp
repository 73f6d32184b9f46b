// Softmax(q . k) . v with a running maximum, so that one pass over the keys is enough.

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/generic/generic.h"
#include "kernels/scalar.h"

namespace ncl::generic {
namespace {

template <FloatType type>
void attend(const AttentionTask& task, Scratch scratch) {
  const int dim = task.head_dim;
  float* sums = take<float>(scratch, dim);
  for (int q = 0; q < task.count; ++q) {
    float largest = -std::numeric_limits<float>::infinity(), total = 0;
    std::fill_n(sums, dim, 0.0f);
    for (int position = task.first[q]; position <= task.last[q]; ++position) {
      const int slot = position % task.capacity;
      const size_t key = key_index(slot, dim), value = value_index(slot, dim);
      float score = 0;
      for (int i = 0; i < dim; ++i) {
        score += task.queries[q][i] *
                 load_float(task.keys, type, key + static_cast<size_t>(i) * kKeyBlock);
      }
      // Not std::max: a NaN score must not be lost.
      const float maximum = score <= largest ? largest : score;
      const float shrink = std::exp(largest - maximum), weight = std::exp(score - maximum);
      total = total * shrink + weight;
      for (int i = 0; i < dim; ++i) {
        sums[i] = sums[i] * shrink + weight * load_float(task.values, type, value + i);
      }
      largest = maximum;
    }
    for (int i = 0; i < dim; ++i) task.outputs[q][i] = sums[i] / total;
  }
}

}  // namespace

size_t attend_scratch(int head_dim) { return scratch_bytes<float>(head_dim); }

void attend_fp32(const AttentionTask& task, Scratch scratch) {
  attend<FloatType::kFp32>(task, scratch);
}

void attend_bf16(const AttentionTask& task, Scratch scratch) {
  attend<FloatType::kBf16>(task, scratch);
}

}  // namespace ncl::generic
