// Softmax(q . k) . v: a pass over the keys with a running maximum, four queries at a time.

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/vectors.h"
#include "kernels/dispatch.h"

namespace ncl::avx2 {
namespace {

constexpr int kChunkBlocks = 8;  // key blocks whose scores are held at once
constexpr int kChunk = kChunkBlocks * kKeyBlock;

template <FloatType type, int queries>
void score_block(const AttentionTask& task, int query, size_t key, float* scores) {
  __m256 low[queries], high[queries];
  for (int q = 0; q < queries; ++q) low[q] = high[q] = _mm256_setzero_ps();
  for (int i = 0; i < task.head_dim; ++i, key += kKeyBlock) {
    const __m256 low_key = load8<type>(task.keys, key), high_key = load8<type>(task.keys, key + 8);
    for (int q = 0; q < queries; ++q) {
      const __m256 value = _mm256_set1_ps(task.queries[query + q][i]);
      low[q] = _mm256_fmadd_ps(low_key, value, low[q]);
      high[q] = _mm256_fmadd_ps(high_key, value, high[q]);
    }
  }
  for (int q = 0; q < queries; ++q) {
    _mm256_storeu_ps(scores + q * kChunk, low[q]);
    _mm256_storeu_ps(scores + q * kChunk + 8, high[q]);
  }
}

// sums[q][dimension] += weights[q][position] * values[position][dimension].
template <FloatType type, int queries>
void add_values(const AttentionTask& task, const float* weights, int first, int count,
                float* const* sums) {
  const int dim = task.head_dim;
  int i = 0;
  for (; i + 16 <= dim; i += 16) {
    __m256 low[queries], high[queries];
    for (int q = 0; q < queries; ++q) {
      low[q] = _mm256_loadu_ps(sums[q] + i);
      high[q] = _mm256_loadu_ps(sums[q] + i + 8);
    }
    int slot = first % task.capacity;
    for (int k = 0; k < count; ++k) {
      const size_t at = value_index(slot, dim) + i;
      const __m256 low_value = load8<type>(task.values, at);
      const __m256 high_value = load8<type>(task.values, at + 8);
      for (int q = 0; q < queries; ++q) {
        const __m256 weight = _mm256_set1_ps(weights[q * kChunk + k]);
        low[q] = _mm256_fmadd_ps(low_value, weight, low[q]);
        high[q] = _mm256_fmadd_ps(high_value, weight, high[q]);
      }
      if (++slot == task.capacity) slot = 0;
    }
    for (int q = 0; q < queries; ++q) {
      _mm256_storeu_ps(sums[q] + i, low[q]);
      _mm256_storeu_ps(sums[q] + i + 8, high[q]);
    }
  }
  for (; i < dim; ++i) {
    int slot = first % task.capacity;
    for (int k = 0; k < count; ++k) {
      const float value = load_float(task.values, type, value_index(slot, dim) + i);
      for (int q = 0; q < queries; ++q) sums[q][i] += weights[q * kChunk + k] * value;
      if (++slot == task.capacity) slot = 0;
    }
  }
}

template <FloatType type, int queries>
[[gnu::noinline]] void attend_queries(const AttentionTask& task, int query) {
  const int dim = task.head_dim;
  const float minus_infinity = -std::numeric_limits<float>::infinity();
  float* const* sums = task.outputs + query;
  float largest[queries], total[queries];
  int begin = task.first[query], end = task.last[query];
  int all_begin = begin, all_end = end;  // what every query sees
  for (int q = 0; q < queries; ++q) {
    std::fill(sums[q], sums[q] + dim, 0.0f);
    largest[q] = minus_infinity, total[q] = 0;
    begin = std::min(begin, task.first[query + q]);
    end = std::max(end, task.last[query + q]);
    all_begin = std::max(all_begin, task.first[query + q]);
    all_end = std::min(all_end, task.last[query + q]);
  }
  if (all_begin > all_end) all_begin = all_end = end + 1;  // nothing
  const int key_blocks = task.capacity / kKeyBlock;
  float scores[queries * kChunk];
  for (int chunk = begin / kKeyBlock * kKeyBlock; chunk <= end; chunk += kChunk) {
    // Whole key blocks are scored; positions outside [begin, end] are left out below.
    const int blocks = std::min(kChunkBlocks, (end - chunk) / kKeyBlock + 1);
    for (int block = 0; block < blocks; ++block) {
      const int slot_block = (chunk / kKeyBlock + block) % key_blocks;
      score_block<type, queries>(task, query, key_index(slot_block * kKeyBlock, dim),
                                 scores + block * kKeyBlock);
    }
    for (int q = 0; q < queries; ++q) {
      float* of_query = scores + q * kChunk;
      const int from = std::max(task.first[query + q] - chunk, 0);
      const int to = std::min(task.last[query + q] - chunk + 1, blocks * kKeyBlock);
      std::fill(of_query, of_query + std::min(from, blocks * kKeyBlock), minus_infinity);
      for (int k = std::max(to, 0); k < blocks * kKeyBlock; ++k) of_query[k] = minus_infinity;
      if (from >= to) {
        std::fill(of_query, of_query + blocks * kKeyBlock, 0.0f);
        continue;
      }
      float maximum = largest[q];
      // A NaN score makes the maximum NaN, and so the whole result.
      for (int k = from; k < to; ++k) maximum = of_query[k] <= maximum ? maximum : of_query[k];
      const float shrink = std::exp(largest[q] - maximum);
      const __m256 maximum8 = _mm256_set1_ps(maximum);
      __m256 sum = _mm256_setzero_ps();
      for (int k = 0; k < blocks * kKeyBlock; k += 8) {
        const __m256 score = _mm256_loadu_ps(of_query + k);
        // The least result of exp8 is e^-87, but a hidden position must have weight 0.
        const __m256 hidden = _mm256_cmp_ps(score, _mm256_set1_ps(minus_infinity), _CMP_EQ_OQ);
        const __m256 weight = _mm256_andnot_ps(hidden, exp8(_mm256_sub_ps(score, maximum8)));
        _mm256_storeu_ps(of_query + k, weight);
        sum = _mm256_add_ps(sum, weight);
      }
      total[q] = total[q] * shrink + sum8(sum);
      for (int i = 0; i < dim; ++i) sums[q][i] *= shrink;
      largest[q] = maximum;
    }
    // The part of the positions [from, to] that lies in this chunk.
    const auto in_chunk = [&](int from, int to, auto&& add) {
      from = std::max(from, chunk), to = std::min(to, chunk + blocks * kKeyBlock - 1);
      if (from <= to) add(from, to - from + 1, from - chunk);
    };
    in_chunk(all_begin, all_end, [&](int from, int count, int offset) {
      add_values<type, queries>(task, scores + offset, from, count, sums);
    });
    // Positions that only some queries see are added for those alone: 0 * NaN is NaN.
    for (int q = 0; q < queries; ++q) {
      const auto add = [&](int from, int count, int offset) {
        add_values<type, 1>(task, scores + q * kChunk + offset, from, count, sums + q);
      };
      in_chunk(task.first[query + q], std::min(all_begin - 1, task.last[query + q]), add);
      in_chunk(all_end + 1, task.last[query + q], add);
    }
  }
  for (int q = 0; q < queries; ++q) {
    for (int i = 0; i < dim; ++i) sums[q][i] /= total[q];
  }
}

template <FloatType type>
void attend(const AttentionTask& task) {
  in_row_steps<4>(task.count, [&](auto queries, int query) {
    attend_queries<type, queries.value>(task, query);
  });
}

}  // namespace

size_t attend_scratch(int) { return 0; }  // the sums are kept in the outputs

void attend_fp32(const AttentionTask& task, Scratch) { attend<FloatType::kFp32>(task); }

void attend_bf16(const AttentionTask& task, Scratch) { attend<FloatType::kBf16>(task); }

}  // namespace ncl::avx2
