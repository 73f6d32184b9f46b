// AVX2 + FMA + F16C.
#include "kernels/avx2/avx2.h"

namespace ncl::avx2 {

extern const Kernels kernels;
const Kernels kernels = {
    .prepare_thread = nullptr,
    .activations = {activation_bytes, write_activation_row},
    .scratch = {product_scratch, float_product_scratch, round_tile_scratch},
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
