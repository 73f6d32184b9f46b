// AVX-VNNI: products of integers by vpdpbusd in 256 bits. All else is what AVX2 has, which each of
// these CPUs runs.
#include "kernels/avx2/avx2.h"
#include "kernels/avx_vnni/avx_vnni.h"

namespace ncl::avx_vnni {

extern const Kernels kernels;
const Kernels kernels = {
    .prepare_thread = nullptr,
    .activations = {avx2::byte_rows_size, avx2::write_byte_row},
    .scratch = {product_scratch, avx2::float_product_scratch, avx2::round_tile_scratch},
    .rms_norm = avx2::rms_norm,
    .silu_gate = avx2::silu_gate,
    .integer_product = integer_product,
    .float_product = avx2::float_product,
    .dense_product = avx2::dense_product,
    .attend = {avx2::attend<KVType::kFp32>, avx2::attend<KVType::kBf16>,
               avx2::attend<KVType::kInt8>},
    .round_tile = avx2::round_tile,
    .read_all = avx2::read_all,
    .instruction = instruction,
};

}  // namespace ncl::avx_vnni
