// The kernels of this folder, as table.cpp puts them together. See kernels.h for
// what each does.
#pragma once

#include "kernels/kernels.h"

namespace ncl::avx2 {

// Rows of bytes (eight_bit_rows.h): one plane for int8, two for bf16.
size_t byte_rows_size(int rows, int cols, ComputeType type);
void write_byte_row(const float* x, const Activations& out, int row);

// The same, and for bf16 the integers in 16 bits, too (wide_rows.h).
size_t activation_bytes(int rows, int cols, ComputeType type);
void write_activation_row(const float* x, const Activations& out, int row);

void rms_norm(const float* x, const float* weight, float eps, int n, float* out);
void silu_gate(const float* gate, const float* up, int n, float* out);

size_t product_scratch(int rows, int cols);
size_t float_product_scratch(int rows, int cols);
void integer_product(const Matrix&, int begin, int end, const Activations& x, Output, Scratch);
void float_product(const Matrix&, int begin, int end, const float* x, int rows, Output, Scratch);
void dense_product(const Matrix&, int begin, int end, const float* x, int rows, Output);

template <KVType type>
void attend(const AttentionTask&);

size_t round_tile_scratch(const Rounding&);
bool round_tile(const Rounding&, int tile, Scratch);

uint64_t read_all(const void* data, size_t n);

const Instruction& instruction(WeightType, ComputeType);

}  // namespace ncl::avx2
