// A step of a decoder: new tokens of several sequences go through all layers, and some of them to
// logits or to hidden states, without coming back to Python. kernels/operations.py describes what
// is computed.
#pragma once

#include <array>
#include <vector>

#include "ops/attention.h"
#include "ops/linear.h"

namespace ncl {

struct Norm {
  const float* weight;  // [cols]
  float eps;
};

struct Layer {
  Norm attention_norm;
  Projection qkv;
  AttentionShape attention;
  int table;  // which of a sequence's page tables it uses
  Projection output;
  Norm mlp_norm;
  Projection gate_up;
  Activation activation;
  Projection down;
};

// Made once. It owns no weights.
struct Program {
  Matrix embedding;
  std::vector<Layer> layers;
  Norm norm;
  Projection head;
};

// New tokens of one sequence, and its page tables.
struct Sequence {
  int count;
  int start;
  std::vector<uint8_t* const*> tables;
};

// What the time of a step is spent on.
enum class Part { kEmbedding, kQkv, kAttention, kOutput, kGateUp, kDown, kHead };
constexpr int kParts = 7;
using Seconds = std::array<double, kParts>;

struct Step {
  const Program* program;
  const int64_t* ids;  // [rows of all sequences]
  int rows;
  const std::vector<Sequence>* sequences;
  Rotary rotary;
  const int64_t* wanted;  // [wanted_count] rows whose logits or states are wanted
  int wanted_count;
  bool states;       // after the last norm: the head is left out
  float* out;        // [wanted_count][vocabulary], or [wanted_count][hidden]
  Seconds* seconds;  // null, or where the time of each part is added
};

void step(const Step&);

}  // namespace ncl
