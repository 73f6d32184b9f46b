// A part of softmax(q . k) . v, for sets with vectors: chunk after chunk of positions with a
// running maximum, several queries at a time.
//
// Whatever queries it has beside it, a query gets the same operations in the same order: chunks
// begin at multiples of their size, sums go from the first position to the last, and what a query
// does not see adds nothing to it. tests/kernels asks for the same bits.
//
// V is a vector type of the set (avx2/floats.h shows what it has).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/dispatch.h"
#include "kernels/kernels.h"

namespace ncl {
namespace {

template <class V, KVType type>
class PartOfAttention {
 public:
  explicit PartOfAttention(const AttentionTask& task)
      : task_(task),
        dim_(task.head_dim),
        at_(head_layout(type, task.head_dim)),
        far_(task.count < kManyQueries),
        last_(*std::max_element(task.last, task.last + task.count)) {}

  void run() const {
    in_row_steps<V::kQueries>(task_.count,
                              [&](auto queries, int query) { attend<queries.value>(query); });
  }

 private:
  static constexpr int kChunk = 128;  // positions whose scores are held at once
  static constexpr int kVectors = kKeyBlock / V::kWidth;
  static constexpr int kLine = 64;         // bytes that are asked for at once
  static constexpr int kManyQueries = 16;  // bound by arithmetic; their keys are in the cache
  static constexpr float kNothing = -std::numeric_limits<float>::infinity();
  static_assert(kSegment % kChunk == 0 && kChunk % kPage == 0 && kPage % kKeyBlock == 0);

  // The keys that are asked for while the values of a position's page are added: those of the same
  // page of the next chunk, of this task or the next. Null: none are known.
  const uint8_t* keys_ahead(int position) const {
    if (!far_) return nullptr;
    const int ahead = position + kChunk, page = ahead % kSegment / kPage;
    if (ahead < task_.segment + kSegment) return ahead <= last_ ? head(ahead) + at_.keys : nullptr;
    return page < task_.ahead.count ? task_.ahead.pages[page] + task_.ahead.head + at_.keys
                                    : nullptr;
  }

  static void prefetch(const uint8_t* line) { __builtin_prefetch(line, 0, 3); }

  const uint8_t* head(int position) const { return task_.pages[position / kPage] + task_.head; }

  // The scores of `blocks` key blocks from `slot` of one page on: as many sums at once as hide the
  // latency of an addition.
  template <int queries, int blocks>
  void score(int query, const uint8_t* head, int slot, float* scores) const {
    // In one dimension: gcc keeps sums[b][q][v] in memory.
    V sums[blocks * queries * kVectors];
    const auto at = [](int b, int q, int v) { return (b * kVectors + v) * queries + q; };
    for (V& sum : sums) sum = V::zero();
    const float* values[queries];
    for (int q = 0; q < queries; ++q) values[q] = task_.queries[query + q];
    const uint8_t* keys[blocks];
    for (int b = 0; b < blocks; ++b) {
      keys[b] = head + at_.keys + key_index(slot + b * kKeyBlock, dim_) * element_bytes(type);
    }
    for (int i = 0; i < dim_; ++i) {
      V key[blocks * kVectors];
#pragma GCC unroll 4
      for (int b = 0; b < blocks; ++b) {
        const size_t offset = i * kKeyBlock * element_bytes(type);
        if (far_ && offset % kLine == 0) prefetch(keys[b] + offset + at_.values);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          key[b * kVectors + v] = V::template load<type>(keys[b], i * kKeyBlock + v * V::kWidth);
        }
      }
#pragma GCC unroll 8
      for (int q = 0; q < queries; ++q) {
        const V value = V::set(values[q][i]);
#pragma GCC unroll 8
        for (int k = 0; k < blocks * kVectors; ++k) {
          sums[k * queries + q] = V::fma(key[k], value, sums[k * queries + q]);
        }
      }
    }
    for (int b = 0; b < blocks; ++b) {
      for (int v = 0; v < kVectors; ++v) {
        const int offset = b * kKeyBlock + v * V::kWidth;
        [[maybe_unused]] V scale;
        if constexpr (type == KVType::kInt8) {
          scale = V::template load<KVType::kBf16>(head + at_.key_scales, slot + offset);
        }
        for (int q = 0; q < queries; ++q) {
          V sum = sums[at(b, q, v)];
          if constexpr (type == KVType::kInt8) sum = sum * scale;
          sum.store(scores + q * kChunk + offset);
        }
      }
    }
  }

  // The scores of `blocks` key blocks from position `from` on.
  template <int queries>
  void score_blocks(int query, int from, int blocks, float* scores) const {
    constexpr int kAtOnce = std::clamp(8 / (queries * kVectors), 1, kPage / kKeyBlock);
    for (int block = 0; block < blocks;) {
      const int position = from + block * kKeyBlock, slot = position % kPage;
      const int of_page = std::min(blocks - block, (kPage - slot) / kKeyBlock);
      in_row_steps<kAtOnce>(of_page, [&](auto count, int first) {
        score<queries, count.value>(query, head(position), slot + first * kKeyBlock,
                                    scores + (block + first) * kKeyBlock);
      });
      block += of_page;
    }
  }

  // sums[q][dimension] += weights[q][position] * values[position][dimension], `vectors` of
  // dimensions from `i` on, for positions [from, from + count).
  template <int queries, int vectors>
  void add_dimensions(const float* weights, int from, int count, float* const* sums, int i) const {
    V total[queries * vectors];
    const auto at = [](int q, int v) { return q * vectors + v; };
    for (int q = 0; q < queries; ++q) {
      for (int v = 0; v < vectors; ++v) total[at(q, v)] = V::load(sums[q] + i + v * V::kWidth);
    }
    for (int done = 0; done < count;) {
      const int slot = (from + done) % kPage, of_page = std::min(count - done, kPage - slot);
      const uint8_t* values = head(from + done) + at_.values;
      const uint8_t* ahead = keys_ahead(from + done);
      for (int k = 0; k < of_page; ++k) {
        V value[vectors];
        for (int v = 0; v < vectors; ++v) {
          const size_t index = value_index(slot + k, dim_) + i + v * V::kWidth;
          value[v] = V::template load<type>(values, index);
          if (ahead && v * V::kWidth * element_bytes(type) % kLine == 0) {
            prefetch(ahead + index * element_bytes(type));
          }
        }
#pragma GCC unroll 8
        for (int q = 0; q < queries; ++q) {
          const V weight = V::set(weights[q * kChunk + done + k]);
#pragma GCC unroll 16
          for (int v = 0; v < vectors; ++v) {
            total[at(q, v)] = V::fma(value[v], weight, total[at(q, v)]);
          }
        }
      }
      done += of_page;
    }
    for (int q = 0; q < queries; ++q) {
      for (int v = 0; v < vectors; ++v) total[at(q, v)].store(sums[q] + i + v * V::kWidth);
    }
  }

  // Dimensions that fill no vector.
  template <int queries>
  void add_rest(const float* weights, int from, int count, float* const* sums, int i) const {
    for (; i < dim_; ++i) {
      for (int k = 0; k < count; ++k) {
        const int slot = (from + k) % kPage;
        const uint8_t* values = head(from + k) + at_.values;
        const float value = element<type>(values, value_index(slot, dim_) + i);
        for (int q = 0; q < queries; ++q) sums[q][i] += weights[q * kChunk + k] * value;
      }
    }
  }

  template <int queries>
  void add_values(const float* weights, int from, int count, float* const* sums) const {
    constexpr int kAtOnce = std::max(1, V::kSums / queries);
    const int whole = dim_ / V::kWidth;
    in_row_steps<kAtOnce>(whole, [&](auto vectors, int first) {
      add_dimensions<queries, vectors.value>(weights, from, count, sums, first * V::kWidth);
    });
    add_rest<queries>(weights, from, count, sums, whole * V::kWidth);
  }

  // From the scores of positions [begin, length) of a chunk to weights. The query sees [from, to)
  // of them. All are counted from the first position of the chunk; whole key blocks have a score.
  void weigh(float* scores, int chunk, int begin, int length, int from, int to, float* sums,
             float& largest, float& total) const {
    std::fill(scores + begin, scores + from, kNothing);
    std::fill(scores + to, scores + length, kNothing);
    V most = V::set(largest);
    for (int k = begin; k < length; k += V::kWidth) most = most.max(V::load(scores + k));
    // Whatever the maximum makes of a NaN score: its weight is NaN, and so is the whole result.
    const float maximum = most.largest();
    const float shrink = std::exp(largest - maximum);
    const V all = V::set(maximum);
    V sum = V::zero();
    for (int k = begin; k < length; k += V::kWidth) {
      const V score = V::load(scores + k);
      // A hidden position has a weight of exactly 0; the least result of exp is e^-87.
      V weight = V::zero_where(score, kNothing, (score - all).exp());
      sum = sum + weight;
      if constexpr (type == KVType::kInt8) {
        const int slot = (chunk + k) % kPage;
        const uint8_t* scales = head(chunk + k) + at_.value_scales;
        weight = weight * V::template load<KVType::kBf16>(scales, slot);
      }
      weight.store(scores + k);
    }
    total = total * shrink + sum.sum();
    for (int i = 0; i < dim_; ++i) sums[i] *= shrink;
    largest = maximum;
  }

  template <int queries>
  [[gnu::noinline]] void attend(int query) const {
    float* const* sums = task_.sums + query;
    float* largest = task_.largest + query;
    float* total = task_.total + query;
    int first[queries], last[queries];  // what each query sees of the segment
    int begin = task_.segment + kSegment, end = task_.segment - 1;
    int all_begin = task_.segment, all_end = task_.segment + kSegment - 1;  // what every one sees
    for (int q = 0; q < queries; ++q) {
      std::fill(sums[q], sums[q] + dim_, 0.0f);
      largest[q] = kNothing, total[q] = 0;
      first[q] = std::max(task_.first[query + q], task_.segment);
      last[q] = std::min(task_.last[query + q], task_.segment + kSegment - 1);
      if (first[q] <= last[q]) begin = std::min(begin, first[q]), end = std::max(end, last[q]);
      all_begin = std::max(all_begin, first[q]), all_end = std::min(all_end, last[q]);
    }
    if (all_begin > all_end) all_begin = end + 1, all_end = end;  // nothing
    alignas(64) float scores[queries * kChunk];
    for (int chunk = begin / kChunk * kChunk; chunk <= end; chunk += kChunk) {
      // Whole key blocks are scored, also of positions that a query does not see.
      const int skipped = std::max(0, begin - chunk) / kKeyBlock;
      const int blocks = std::min(kChunk / kKeyBlock, (end - chunk) / kKeyBlock + 1);
      const int length = blocks * kKeyBlock;
      score_blocks<queries>(query, chunk + skipped * kKeyBlock, blocks - skipped,
                            scores + skipped * kKeyBlock);
      for (int q = 0; q < queries; ++q) {
        const int from = std::max(first[q] - chunk, 0), to = std::min(last[q] - chunk + 1, length);
        if (from < to) {
          weigh(scores + q * kChunk, chunk, skipped * kKeyBlock, length, from, to, sums[q],
                largest[q], total[q]);
        }
      }
      // Positions [from, to], as far as they lie in this chunk.
      const auto in_chunk = [&](int from, int to, auto&& add) {
        from = std::max(from, chunk), to = std::min(to, chunk + length - 1);
        if (from <= to) add(from, to - from + 1, from - chunk);
      };
      const auto alone = [&](int q, int from, int to) {
        in_chunk(from, to, [&](int position, int count, int offset) {
          add_values<1>(scores + q * kChunk + offset, position, count, sums + q);
        });
      };
      // From the first position to the last: those that only some queries see are added for these
      // alone, as 0 * NaN is NaN.
      for (int q = 0; q < queries; ++q) alone(q, first[q], std::min(all_begin - 1, last[q]));
      in_chunk(all_begin, all_end, [&](int position, int count, int offset) {
        add_values<queries>(scores + offset, position, count, sums);
      });
      for (int q = 0; q < queries; ++q) alone(q, std::max(all_end + 1, first[q]), last[q]);
    }
  }

  const AttentionTask& task_;
  const int dim_;
  const HeadLayout at_;
  const bool far_;  // few queries: memory is the limit
  const int last_;  // position that a query sees
};

}  // namespace
}  // namespace ncl
