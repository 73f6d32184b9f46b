#include "ops/step.h"

#include <chrono>
#include <cstring>

#include "kernels/dispatch.h"

namespace ncl {
namespace {

// Adds the time since the last part to each part, if anyone asks.
class Clock {
 public:
  explicit Clock(Seconds* seconds) : seconds_(seconds) {
    if (seconds_) last_ = Time::now();
  }
  void end(Part part) {
    if (!seconds_) return;
    const auto now = Time::now();
    (*seconds_)[static_cast<int>(part)] += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  using Time = std::chrono::steady_clock;
  Seconds* seconds_;
  Time::time_point last_;
};

// The minimum of a group; `scale` is the group's.
float minimum_of(const Matrix& m, size_t at, float scale) {
  if (!m.byte_minima) return load_float(m.minima, m.scale_type, at);
  return scale * (static_cast<const int8_t*>(m.minima)[at] / 8.0f - 8.0f);
}

// One row of a packed matrix as floats, [cols]. With minima a weight is rounded twice, as it is
// where all is multiplied in fp32.
void unpack_row(const Matrix& m, int row, float* out) {
  const int tile = row / kRowTile, lane = row % kRowTile;
  for (int first = 0; first < m.cols; first += kColumnBlock) {
    const int block = first / kColumnBlock;
    const uint8_t* codes = block_codes(m, tile, block) + lane * 4;
    const size_t at = group_index(m, tile, block) + lane;
    const bool nibbles = m.type == WeightType::kInt4;
    const int zero = m.minima ? 0 : m.zeros ? m.zeros[at] : nibbles ? 8 : 0;
    const float scale = load_float(m.scales, m.scale_type, at);
    const float minimum = m.minima ? minimum_of(m, at, scale) : 0.0f;
    for (int i = 0; i < kColumnBlock && first + i < m.cols; ++i) {
      const int four = i / 4;  // of columns, which lie together
      const uint8_t byte = codes[(nibbles ? four / 2 : four) * 64 + i % 4];
      const int code = nibbles ? (four % 2 ? byte >> 4 : byte & 0xf) : static_cast<int8_t>(byte);
      const float weight = scale * static_cast<float>(code - zero);
      *out++ = m.minima ? weight + minimum : weight;
    }
  }
}

void embed(const Matrix& table, const int64_t* ids, int rows, float* out) {
  const size_t size = table.cols;
  if (is_packed(table.type)) {
    for (int row = 0; row < rows; ++row) {
      unpack_row(table, static_cast<int>(ids[row]), out + row * size);
    }
    return;
  }
  with_dense_type(table, [&](auto type) {
    for (int row = 0; row < rows; ++row) {
      const size_t first = static_cast<size_t>(ids[row]) * size;
      for (size_t i = 0; i < size; ++i) *out++ = load_float(table.data, type.value, first + i);
    }
  });
}

float* floats(Buffer& buffer, size_t rows, size_t cols) {
  return static_cast<float*>(buffer.reserve(sizeof(float) * rows * cols));
}

}  // namespace

void step(const Step& op) {
  Runtime& rt = runtime();
  const std::lock_guard lock(rt.turn);
  const Program& program = *op.program;
  const int rows = op.rows, hidden = program.embedding.cols;
  Clock clock(op.seconds);

  float* x = floats(rt.hidden, rows, hidden);
  embed(program.embedding, op.ids, rows, x);
  clock.end(Part::kEmbedding);
  std::vector<Span> spans;
  for (const Sequence& sequence : *op.sequences) {
    spans.push_back({sequence.count, sequence.start, nullptr});
  }
  const auto product = [&](const float* input, const Projection& projection, int input_rows,
                           Norm norm, Activation gate, bool accumulate, float* out) {
    linear(rt, {&projection, input, input_rows, norm.weight, norm.eps, gate, accumulate, out});
  };
  constexpr Norm kNoNorm{nullptr, 0};
  for (const Layer& layer : program.layers) {
    const AttentionShape& shape = layer.attention;
    float* qkv = floats(rt.qkv, rows, layer.qkv.rows);
    product(x, layer.qkv, rows, layer.attention_norm, Activation::kNone, false, qkv);
    clock.end(Part::kQkv);
    for (size_t i = 0; i < spans.size(); ++i) {
      spans[i].pages = (*op.sequences)[i].tables[layer.table];
    }
    float* heads = floats(rt.heads, rows, static_cast<size_t>(shape.heads) * shape.dim);
    attention(rt, {&shape, spans.data(), static_cast<int>(spans.size()), op.rotary, qkv, heads});
    clock.end(Part::kAttention);
    product(heads, layer.output, rows, kNoNorm, Activation::kNone, true, x);
    clock.end(Part::kOutput);
    float* gate_up = floats(rt.gate_up, rows, layer.gate_up.rows);
    product(x, layer.gate_up, rows, layer.mlp_norm, Activation::kNone, false, gate_up);
    clock.end(Part::kGateUp);
    product(gate_up, layer.down, rows, kNoNorm, layer.activation, true, x);
    clock.end(Part::kDown);
  }
  if (!op.wanted_count) return;
  if (op.states) {
    rt.run(op.wanted_count, 0, [&](int i, Scratch) {
      rt.kernels->rms_norm(x + static_cast<size_t>(op.wanted[i]) * hidden, program.norm.weight,
                           program.norm.eps, hidden, op.out + static_cast<size_t>(i) * hidden);
    });
    return;
  }
  const size_t row_bytes = sizeof(float) * hidden;
  float* last = x;  // the wanted rows, one after the other
  if (op.wanted_count != rows) {
    last = floats(rt.wanted, op.wanted_count, hidden);
    for (int i = 0; i < op.wanted_count; ++i) {
      std::memcpy(last + static_cast<size_t>(i) * hidden,
                  x + static_cast<size_t>(op.wanted[i]) * hidden, row_bytes);
    }
  }
  product(last, program.head, op.wanted_count, program.norm, Activation::kNone, false, op.out);
  clock.end(Part::kHead);
}

}  // namespace ncl
