// AVX2 + FMA + F16C. With one row of activations, codes are unpacked in registers and multiplied
// in 16 bits. Several rows share a tile that is unpacked into the first-level cache.
#include "kernels/avx2/avx2.h"

namespace ncl::avx2 {

extern const Kernels kernels;
const Kernels kernels = {
    .prepare_thread = nullptr,
    .activations = {activation_bytes, write_activation_row},
    .scratch = {product_scratch, round_tile_scratch},
    .rms_norm = rms_norm,
    .silu_gate = silu_gate,
    .integer_product = integer_product,
    .float_product = float_product,
    .dense_product = dense_product,
    .attend = {attend<KVType::kFp32>, attend<KVType::kBf16>, attend<KVType::kInt8>},
    .round_tile = round_tile,
    .read_all = read_all,
    .instruction = instruction,
};

}  // namespace ncl::avx2
