// Quantizing a matrix by rounding to nearest, tile by tile.
#pragma once

#include "kernels/kernels.h"

namespace ncl {

// False when some tile cannot be done here (see Kernels::round_tile).
bool round_to_nearest(const Rounding&);

}  // namespace ncl
