// What an instruction set gives: a table of kernels, and the format in which its products take
// activations.
//
// A set is a folder beside this file, compiled with flags of its own, and a namespace of the same
// name. Inline functions of our headers are in an anonymous namespace, so that each file has its
// own copy and the linker never picks one that was compiled for another instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kv_layout.h"
#include "kernels/layout.h"
#include "kernels/scratch.h"

namespace ncl {

// The precision of activations in products with packed weights.
enum class ComputeType { kBf16, kInt8, kFp32 };

// Rows of activations in a set's own format. Other code does not read `data`.
struct Activations {
  int rows;
  int cols;
  ComputeType type;
  void* data;  // aligned to 64 bytes
};

struct ActivationFormat {
  // Bytes that rows x cols activations take. 0: this type is multiplied as fp32, unconverted.
  size_t (*bytes)(int rows, int cols, ComputeType type);
  // Converts one row x [cols] into row `row` of `out`. Rows may be written by several threads.
  void (*write_row)(const float* x, const Activations& out, int row);
};

// Where a range of row tiles of a product goes: out[row of x * stride + output row].
struct Output {
  float* data;
  int stride;
  bool accumulate;
};

// Positions that a call of `attend` reads: a segment. Segments begin at multiples of it, whatever a
// query sees, so that a query adds up the same parts in the same order alone and in any company.
constexpr int kSegment = 256;

// What the thread of a task probably reads after it, so that the task can ask for it in time: a
// head's memory in the first pages of a segment.
struct Ahead {
  const uint8_t* const* pages = nullptr;
  int count = 0;  // pages that exist
  size_t head = 0;
};

// Queries that share keys: the heads of one group at one or more positions, and one segment of
// positions. What it finds are parts of a softmax, to be put together (ops/attention.cpp).
struct AttentionTask {
  const float* const* queries;  // [count] pointers to [head_dim], rotated and scaled
  const int* first;             // [count] first position that a query sees
  const int* last;              // [count] last position that it sees
  int count;
  int head_dim;
  const uint8_t* const* pages;  // page of position p: pages[p / kPage]
  size_t head;                  // offset of the head in a page: see kv_layout.h
  int segment;                  // its first position
  Ahead ahead;
  float* const* sums;  // [count] pointers to [head_dim]: sum of weight * value
  float* largest;      // [count] score; minus infinity where a query sees nothing
  float* total;        // [count] sum of weights e^(score - largest)
};

// Float weights to quantize by rounding to nearest. The limits are those of quantization/rtn.py.
struct Rounding {
  const void* weights;  // [rows][cols]
  FloatType weight_type;
  int rows;
  int cols;
  int group_size;  // columns; all of them for one scale a row
  WeightType type;
  float lowest, highest;  // codes; when symmetric, before `symmetric_zero` is added
  float steps;            // the scale is the largest weight, or the range, divided by it
  int symmetric_zero;
  FloatType scale_type;
  Scheme scheme;
  uint8_t* codes;  // packed, all three
  void* scales;
  void* beside;  // zeros or minima, as the scheme has them; null: symmetric
  bool search;   // for better scales and zeros, as quantization/search.py does
};

// Bytes of scratch memory that one thread needs for a call of a kernel.
struct ScratchBytes {
  size_t (*integer_product)(int rows, int cols);
  size_t (*float_product)(int rows, int cols);
  size_t (*round_tile)(const Rounding&);
};

// What products of packed weights are made of, for reports and for benchmarks.
struct Instruction {
  const char* set;   // the folder whose kernel runs: a table may hold another set's
  const char* name;  // as assemblers spell it
  // Runs the instruction, and the additions that go with it in a product, `times` times or a little
  // more, in registers alone. Returns the operations that were done: each multiplication and each
  // addition of a product counts as one.
  uint64_t (*run)(uint64_t times);
};

struct Kernels {
  // Called once by each thread before its first kernel, for example to request tile registers.
  // Null: there is nothing to do.
  void (*prepare_thread)();

  ActivationFormat activations;
  ScratchBytes scratch;

  // out = x * weight / sqrt(mean(x^2) + eps), over n values.
  void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* out);
  // out = silu(gate) * up.
  void (*silu_gate)(const float* gate, const float* up, int n, float* out);

  // Row tiles [begin, end) of a packed matrix times activations in the set's own format.
  //
  // The bits of a row's result depend neither on the other rows nor on the instruction set. A block
  // of 32 columns of x is integers of at most `largest_integer` and one scale (activation_block.h).
  // An output is the sum over blocks, in their order and from zero,
  //     sum = fma(float(dot) * scale of x, scale of the weights, sum)
  // with the exact integer dot product of (code - zero) and x, and each operation rounded once.
  // With minima the dot product is that of the codes, and a block adds a second term after it, with
  // the exact sum of its integers:
  //     sum = fma(float(sum of x) * scale of x, minimum, sum)
  // Then `store_output` adds the bias and what was there.
  void (*integer_product)(const Matrix&, int begin, int end, const Activations& x, Output, Scratch);
  // The same with fp32 activations x [rows][cols]: weights and sums in fp32.
  void (*float_product)(const Matrix&, int begin, int end, const float* x, int rows, Output,
                        Scratch);
  // Rows 16 * begin .. 16 * end of a row-major matrix times fp32 activations.
  void (*dense_product)(const Matrix&, int begin, int end, const float* x, int rows, Output);

  // A part of softmax(q . k) . v for each KVType.
  void (*attend[kKVTypes])(const AttentionTask&);

  // Quantizes one row tile. False, with the tile unfinished, when it holds NaN or infinity or
  // needs a scale that is too large or subnormal in its type.
  bool (*round_tile)(const Rounding&, int tile, Scratch);

  // Reads n bytes, a multiple of 128, and returns a value that depends on them all: the
  // bandwidth probe.
  uint64_t (*read_all)(const void* data, size_t n);

  // The instruction that multiplies weights of a type with activations of a type. Weights that are
  // not packed are multiplied in fp32, whatever the activations are.
  const Instruction& (*instruction)(WeightType, ComputeType);
};

}  // namespace ncl
