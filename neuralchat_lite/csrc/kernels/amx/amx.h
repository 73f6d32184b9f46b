// The kernels of this folder, as table.cpp puts them together. See kernels.h for what each does.
#pragma once

#include "kernels/kernels.h"

namespace ncl::amx {

// With fewer rows of activations, formats and products are those of avx512_vnni: a tile of
// activations has 16 rows, a product of tiles takes the same 16 cycles for any number of them, and
// int4 codes go through memory first, which only many rows repay.
constexpr int kLeastRows = 16;

size_t activation_bytes(int rows, int cols, ComputeType type);
void write_activation_row(const float* x, const Activations& out, int row);

size_t product_scratch(int rows, int cols);
void integer_product(const Matrix&, int begin, int end, const Activations& x, Output, Scratch);

const Instruction& instruction(WeightType, ComputeType);

}  // namespace ncl::amx
