// Activations as rows of bytes (eight_bit_rows.h), one plane for compute in int8 and two for bf16.

#include <immintrin.h>

#include "kernels/avx512_vnni/avx512_vnni.h"
#include "kernels/avx512_vnni/quantized_block.h"
#include "kernels/eight_bit_rows.h"

namespace ncl::avx512_vnni {
namespace {

template <int planes>
void write_row(const float* x, const Activations& out, int row) {
  const ByteRows<planes> to = byte_rows<planes>(out);
  int8_t* values = to.row_values(row);
  for (int block = 0; block < to.blocks; ++block, values += planes * kColumnBlock) {
    const int begin = block * kColumnBlock;
    const QuantizedBlock found =
        quantized_block(x + begin, out.cols - begin, largest_integer(out.type));
    for (int k = 0; k < 2; ++k) {
      const __m512i v = found.integers[k];
      const auto put = [&](int plane, __m512i bytes) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(values + plane * kColumnBlock + 16 * k),
                         _mm512_cvtepi32_epi8(bytes));
      };
      if constexpr (planes == 2) {
        put(0, _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8));
      }
      put(planes - 1, v);
    }
    to.row_scales(row)[block] = found.scale;
    to.row_sums(row)[block] = sum_of(found.integers);
  }
}

}  // namespace

void write_activation_row(const float* x, const Activations& out, int row) {
  out.type == ComputeType::kInt8 ? write_row<1>(x, out, row) : write_row<2>(x, out, row);
}

}  // namespace ncl::avx512_vnni
