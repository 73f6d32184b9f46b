// The kernels of this folder, as table.cpp puts them together. See kernels.h for what each does.
#pragma once

#include "kernels/kernels.h"

namespace ncl::avx512_vnni {

void write_activation_row(const float* x, const Activations& out, int row);

size_t product_scratch(int rows, int cols);
void integer_product(const Matrix&, int begin, int end, const Activations& x, Output, Scratch);

template <KVType type>
void attend(const AttentionTask&);

const Instruction& instruction(WeightType, ComputeType);

}  // namespace ncl::avx512_vnni
