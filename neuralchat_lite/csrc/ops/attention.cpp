#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ncl {
namespace {

constexpr int kQueriesPerItem = 16;  // about so many

// Rotates the pairs (i, i + dim / 2) of one head by the angles of its position.
void rotate(const float* x, const float* cos, const float* sin, int dim, float scale, float* out) {
  const int half = dim / 2;
  for (int i = 0; i < half; ++i) {
    out[i] = scale * (x[i] * cos[i] - x[i + half] * sin[i]);
    out[i + half] = scale * (x[i + half] * cos[i] + x[i] * sin[i]);
  }
}

size_t place_scratch(const AttentionShape& shape) { return 2 * scratch_bytes<float>(shape.dim); }

// Rotates the queries of one row into `queries` [heads][dim], and writes its key and value.
void place_row(const Attention& op, const Kernels& kernels, const Span& span, int position,
               const float* qkv, float* queries, Scratch scratch) {
  const AttentionShape& shape = *op.shape;
  const int dim = shape.dim, slot = position % kPage;
  const float* cos = op.rotary.cos + static_cast<size_t>(position) * (dim / 2);
  const float* sin = op.rotary.sin + static_cast<size_t>(position) * (dim / 2);
  float* normed = take<float>(scratch, dim);
  float* rotated = take<float>(scratch, dim);
  const auto with_norm = [&](const float* x, const float* weight) -> const float* {
    if (!weight) return x;
    kernels.rms_norm(x, weight, shape.eps, dim, normed);
    return normed;
  };
  for (int head = 0; head < shape.heads; ++head, qkv += dim, queries += dim) {
    rotate(with_norm(qkv, shape.query_norm), cos, sin, dim, shape.scale, queries);
  }
  uint8_t* page = span.pages[position / kPage];
  for (int head = 0; head < shape.kv_heads; ++head, qkv += dim) {
    rotate(with_norm(qkv, shape.key_norm), cos, sin, dim, 1.0f, rotated);
    shape.format->write_key(rotated, dim, slot, page + shape.head(head));
  }
  for (int head = 0; head < shape.kv_heads; ++head, qkv += dim) {
    shape.format->write_value(qkv, dim, slot, page + shape.head(head));
  }
}

// Some positions of a span, and the segments that their queries see.
struct Steps {
  const Span* span;
  int row;         // of position `begin` among all rows
  int begin, end;  // of the span
  int first_segment, segments;
};

int first_seen(const AttentionShape& shape, int position) {
  return shape.window ? std::max(0, position - shape.window + 1) : 0;
}

std::vector<Steps> steps_of(const Attention& op, int step) {
  std::vector<Steps> all;
  int row = 0;
  for (int i = 0; i < op.span_count; ++i) {
    const Span& span = op.spans[i];
    for (int begin = 0; begin < span.count; begin += step) {
      const int end = std::min(span.count, begin + step);
      const int first = first_seen(*op.shape, span.start + begin) / kSegment;
      const int last = (span.start + end - 1) / kSegment;
      all.push_back({&span, row + begin, begin, end, first, last - first + 1});
    }
    row += span.count;
  }
  return all;
}

// One segment of a kv head, as the queries of some positions see it.
struct Place {
  const Steps* steps;
  int kv_head;
  int segment;  // of those that they see
  int first_position() const { return (steps->first_segment + segment) * kSegment; }
};

// Parts of the softmax of some queries: of one segment, or of several put together.
struct Parts {
  float* sums;  // [queries][dim]
  float* largest;
  float* total;

  Parts of_query(int query, int dim) const {
    return {sums + static_cast<size_t>(query) * dim, largest + query, total + query};
  }
};

size_t parts_bytes(int queries, int dim) {
  return scratch_bytes<float>(static_cast<size_t>(queries) * dim) +
         2 * scratch_bytes<float>(queries);
}

Parts take_parts(Scratch& scratch, int queries, int dim) {
  float* sums = take<float>(scratch, static_cast<size_t>(queries) * dim);
  float* largest = take<float>(scratch, queries);
  return {sums, largest, take<float>(scratch, queries)};
}

// Puts the next part of one query together with those before it.
void add_part(const Parts& all, const Parts& next, int dim) {
  // Not std::max: NaN must not be lost. A query that sees nothing in a segment has 0 there.
  const float largest = *next.largest <= *all.largest ? *all.largest : *next.largest;
  if (*next.total == 0) return;
  const float shrink = std::exp(*all.largest - largest), grow = std::exp(*next.largest - largest);
  *all.total = *all.total * shrink + *next.total * grow;
  for (int i = 0; i < dim; ++i) all.sums[i] = all.sums[i] * shrink + next.sums[i] * grow;
  *all.largest = largest;
}

void store(const Parts& all, int dim, float* out) {
  for (int i = 0; i < dim; ++i) out[i] = all.sums[i] / *all.total;
}

class Queries {
 public:
  Queries(const Attention& op, const Kernels& kernels, const float* queries)
      : op_(op),
        shape_(*op.shape),
        attend_(kernels.attend[static_cast<int>(shape_.format->type)]),
        queries_(queries),
        group_(shape_.heads / shape_.kv_heads) {}

  static size_t scratch(int queries, int dim) {
    return scratch_bytes<const float*>(queries) + scratch_bytes<float*>(queries) +
           2 * scratch_bytes<int>(queries) + 2 * parts_bytes(queries, dim);
  }

  // The part of one segment. `next`: what this thread probably reads after it; null: unknown.
  void segment(const Place& place, const Place* next, const Parts& part, Scratch scratch) const {
    const Steps& steps = *place.steps;
    const int count = (steps.end - steps.begin) * group_, dim = shape_.dim;
    const float** query = take<const float*>(scratch, count);
    float** sums = take<float*>(scratch, count);
    int* first = take<int>(scratch, count);
    int* last = take<int>(scratch, count);
    for (int i = 0; i < count; ++i) {
      query[i] = queries_ + at(steps, place.kv_head, i);
      sums[i] = part.sums + static_cast<size_t>(i) * dim;
      last[i] = steps.span->start + steps.begin + i / group_;
      first[i] = first_seen(shape_, last[i]);
    }
    attend_({query, first, last, count, dim, steps.span->pages, shape_.head(place.kv_head),
             place.first_position(), next ? ahead(*next) : Ahead{}, sums, part.largest,
             part.total});
  }

  // All segments, one after the other. `next`: as above.
  void whole(const Steps& steps, int kv_head, const Place* next, Scratch scratch) const {
    const int count = (steps.end - steps.begin) * group_, dim = shape_.dim;
    const Parts all = take_parts(scratch, count, dim), one = take_parts(scratch, count, dim);
    const auto read = [&](int i, const Parts& part) {
      const Place here{&steps, kv_head, i}, after{&steps, kv_head, i + 1};
      segment(here, i + 1 < steps.segments ? &after : next, part, scratch);
    };
    read(0, all);
    for (int i = 1; i < steps.segments; ++i) {
      read(i, one);
      for (int q = 0; q < count; ++q) add_part(all.of_query(q, dim), one.of_query(q, dim), dim);
    }
    for (int q = 0; q < count; ++q) {
      store(all.of_query(q, dim), dim, op_.out + at(steps, kv_head, q));
    }
  }

  // Puts the parts of all segments together.
  void merge(const Steps& steps, int kv_head, const Parts* parts) const {
    const int count = (steps.end - steps.begin) * group_, dim = shape_.dim;
    for (int q = 0; q < count; ++q) {
      const Parts all = parts[0].of_query(q, dim);
      for (int i = 1; i < steps.segments; ++i) add_part(all, parts[i].of_query(q, dim), dim);
      store(all, dim, op_.out + at(steps, kv_head, q));
    }
  }

 private:
  // The pages of a place that exist.
  Ahead ahead(const Place& place) const {
    const Span& span = *place.steps->span;
    const int first = place.first_position() / kPage;
    const int pages = (span.start + span.count - 1) / kPage + 1;
    return {span.pages + first, std::min(pages - first, kSegment / kPage),
            shape_.head(place.kv_head)};
  }

  // Where query i of a group begins among the queries and among the outputs.
  size_t at(const Steps& steps, int kv_head, int i) const {
    const size_t row = steps.row + i / group_;
    return (row * shape_.heads + kv_head * group_ + i % group_) * shape_.dim;
  }

  const Attention& op_;
  const AttentionShape& shape_;
  void (*const attend_)(const AttentionTask&);
  const float* const queries_;
  const int group_;
};

}  // namespace

void attention(Runtime& rt, const Attention& op) {
  const Kernels& kernels = *rt.kernels;
  const AttentionShape& shape = *op.shape;
  const int dim = shape.dim, group = shape.heads / shape.kv_heads;

  std::vector<const Span*> span_of;  // each row
  std::vector<int> position_of;
  for (int i = 0; i < op.span_count; ++i) {
    for (int k = 0; k < op.spans[i].count; ++k) {
      span_of.push_back(&op.spans[i]);
      position_of.push_back(op.spans[i].start + k);
    }
  }
  const int rows = static_cast<int>(span_of.size());
  const size_t row_size = static_cast<size_t>(shape.heads) * dim;
  auto* queries = static_cast<float*>(rt.queries.reserve(sizeof(float) * rows * row_size));
  rt.run(rows, place_scratch(shape), [&](int row, Scratch scratch) {
    const float* qkv = op.qkv + static_cast<size_t>(row) * (shape.heads + 2 * shape.kv_heads) * dim;
    place_row(op, kernels, *span_of[row], position_of[row], qkv, queries + row * row_size, scratch);
  });

  const int step = std::max(1, kQueriesPerItem / group);  // positions
  const std::vector<Steps> steps = steps_of(op, step);
  const Queries all(op, kernels, queries);
  const int count = step * group;
  const int items = shape.kv_heads * static_cast<int>(steps.size());
  int parts = 0;
  for (const Steps& some : steps) parts += shape.kv_heads * some.segments;

  // Enough items for all threads, or no more to be had: each goes over its segments.
  if (items >= 8 * rt.pool().threads() || parts == items) {
    rt.run(items, Queries::scratch(count, dim), [&](int item, Scratch scratch) {
      const int after = item + 1;
      const Place next{steps.data() + after / shape.kv_heads, after % shape.kv_heads, 0};
      all.whole(steps[item / shape.kv_heads], item % shape.kv_heads,
                after < items ? &next : nullptr, scratch);
    });
    return;
  }
  // Else each segment is an item, and the parts are put together in the same order.
  std::vector<Place> places;
  std::vector<int> first_part;  // of each item
  for (int i = 0; i < static_cast<int>(steps.size()); ++i) {
    for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
      first_part.push_back(static_cast<int>(places.size()));
      for (int k = 0; k < steps[i].segments; ++k) places.push_back({&steps[i], kv_head, k});
    }
  }
  const size_t part_bytes = parts_bytes(count, dim);
  auto* memory = static_cast<unsigned char*>(rt.parts.reserve(part_bytes * parts));
  std::vector<Parts> found;
  for (int i = 0; i < parts; ++i) {
    Scratch own{memory + part_bytes * i, memory + part_bytes * (i + 1)};
    found.push_back(take_parts(own, count, dim));
  }
  rt.run(parts, Queries::scratch(count, dim), [&](int part, Scratch scratch) {
    const Place* next = part + 1 < parts ? &places[part + 1] : nullptr;
    all.segment(places[part], next, found[part], scratch);
  });
  rt.run(items, 0, [&](int item, Scratch) {
    all.merge(steps[item / shape.kv_heads], item % shape.kv_heads, &found[first_part[item]]);
  });
}

}  // namespace ncl
