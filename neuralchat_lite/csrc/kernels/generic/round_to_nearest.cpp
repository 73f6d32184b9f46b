// Quantizing: see kernels/round_to_nearest.h.

#include "kernels/round_to_nearest.h"

#include "kernels/generic/generic.h"

namespace ncl::generic {

size_t round_tile_scratch(const Rounding& op) { return rounding_scratch(op); }

bool round_tile(const Rounding& op, int tile, Scratch scratch) {
  return round_one_tile(op, tile, scratch,
                        [](const void* data, FloatType type, size_t index, int count, float* out) {
                          for (int i = 0; i < count; ++i)
                            out[i] = load_float(data, type, index + i);
                        });
}

}  // namespace ncl::generic
