// The instruction of a kind of product, and how fast it runs on registers alone: the most that a
// kernel can reach.
#pragma once

#include "kernels/kernels.h"

namespace ncl {

// Of the kernels in use.
const Instruction& instruction(WeightType, ComputeType);

// Operations a second of all threads together, which run the instruction at the same time for
// about `seconds`.
double measure_peak(const Instruction&, double seconds);

}  // namespace ncl
