// AMX: products of many rows in tiles of bytes. All else is what AVX-512 with VNNI and AVX2 have,
// which each of these CPUs runs.
#include "kernels/amx/amx.h"
#include "kernels/avx2/avx2.h"
#include "kernels/avx512_vnni/avx512_vnni.h"

namespace ncl::amx {

extern const Kernels kernels;
const Kernels kernels = {
    .prepare_thread = nullptr,  // integer_product.cpp: tiles are configured for each call
    .activations = {activation_bytes, write_activation_row},
    .scratch = {product_scratch, avx2::float_product_scratch, avx2::round_tile_scratch},
    .rms_norm = avx2::rms_norm,
    .silu_gate = avx2::silu_gate,
    .integer_product = integer_product,
    .float_product = avx2::float_product,
    .dense_product = avx2::dense_product,
    .attend = {avx512_vnni::attend<KVType::kFp32>, avx512_vnni::attend<KVType::kBf16>,
               avx512_vnni::attend<KVType::kInt8>},
    .round_tile = avx2::round_tile,
    .read_all = avx2::read_all,
    .instruction = instruction,
};

}  // namespace ncl::amx
