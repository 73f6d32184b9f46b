// Quantizing: see kernels/round_to_nearest.h. Only the reading of weights is written for AVX2.

#include "kernels/round_to_nearest.h"

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/vectors.h"
#include "kernels/dispatch.h"

namespace ncl::avx2 {

size_t round_tile_scratch(const Rounding& op) { return rounding_scratch(op); }

bool round_tile(const Rounding& op, int tile, Scratch scratch) {
  return round_one_tile(op, tile, scratch,
                        [](const void* data, FloatType type, size_t index, int count, float* out) {
                          with_float_type(type, [&](auto constant) {
                            constexpr FloatType kType = decltype(constant)::value;
                            int i = 0;
                            for (; i + 8 <= count; i += 8)
                              _mm256_storeu_ps(out + i, load8<kType>(data, index + i));
                            for (; i < count; ++i) out[i] = load_float(data, kType, index + i);
                          });
                        });
}

}  // namespace ncl::avx2
