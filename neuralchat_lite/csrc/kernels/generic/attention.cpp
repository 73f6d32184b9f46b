// A part of softmax(q . k) . v with a running maximum, so that one pass over the keys is enough.

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/generic/generic.h"
#include "kernels/scalar.h"

namespace ncl::generic {
namespace {

template <KVType type>
float scale(const uint8_t* scales, int slot) {
  return type == KVType::kInt8 ? load_float(scales, FloatType::kBf16, slot) : 1;
}

}  // namespace

template <KVType type>
void attend(const AttentionTask& task) {
  const int dim = task.head_dim;
  const HeadLayout at = head_layout(type, dim);
  for (int q = 0; q < task.count; ++q) {
    float largest = -std::numeric_limits<float>::infinity(), total = 0;
    float* sums = task.sums[q];
    std::fill_n(sums, dim, 0.0f);
    const int end = std::min(task.last[q] + 1, task.segment + kSegment);
    for (int p = std::max(task.first[q], task.segment); p < end; ++p) {
      const uint8_t* head = task.pages[p / kPage] + task.head;
      const int slot = p % kPage;
      const size_t key = key_index(slot, dim), value = value_index(slot, dim);
      float score = 0;
      for (int i = 0; i < dim; ++i) {
        score += task.queries[q][i] *
                 element<type>(head + at.keys, key + static_cast<size_t>(i) * kKeyBlock);
      }
      score *= scale<type>(head + at.key_scales, slot);
      // Not std::max: a NaN score must not be lost.
      const float maximum = score <= largest ? largest : score;
      const float shrink = std::exp(largest - maximum), weight = std::exp(score - maximum);
      const float scaled = weight * scale<type>(head + at.value_scales, slot);
      total = total * shrink + weight;
      for (int i = 0; i < dim; ++i) {
        sums[i] = sums[i] * shrink + scaled * element<type>(head + at.values, value + i);
      }
      largest = maximum;
    }
    task.largest[q] = largest;
    task.total[q] = total;
  }
}

template void attend<KVType::kFp32>(const AttentionTask&);
template void attend<KVType::kBf16>(const AttentionTask&);
template void attend<KVType::kInt8>(const AttentionTask&);

}  // namespace ncl::generic
