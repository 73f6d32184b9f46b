// Packed weights times integer activations: 16-bit ones by vpdpwssd, 8-bit ones by vpdpbusd.
//
// A 64-byte tile of codes is one register with a 32-bit word for each of 16 output rows, which is
// what both instructions add up. Codes are unpacked into registers once for several rows of
// activations. However many there are, each row gets the same operations in the same order: its
// result does not depend on the others.

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels/avx512_vnni/avx512_vnni.h"
#include "kernels/dispatch.h"
#include "kernels/eight_bit_rows.h"
#include "kernels/sixteen_bit_rows.h"

namespace ncl::avx512_vnni {
namespace {

// See avx2/integer_product.cpp.
constexpr int kPrefetchBytes = 3072;
// Activations of so many rows lie in the second-level cache while the tiles of a range pass: 64
// rows of 5,632 columns are 0.7 MB in 16 bits.
constexpr int kRowBlock = 64;

inline __m512i broadcast(const void* four_bytes) {
  int32_t word;
  std::memcpy(&word, four_bytes, 4);
  return _mm512_set1_epi32(word);
}

template <FloatType type>
inline __m512 load16(const void* data, size_t index) {
  if constexpr (type == FloatType::kFp32) {
    return _mm512_loadu_ps(static_cast<const float*>(data) + index);
  } else {
    const auto* halves =
        reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(data) + index);
    if constexpr (type == FloatType::kFp16) {
      return _mm512_cvtph_ps(_mm256_loadu_si256(halves));
    } else {
      return _mm512_castsi512_ps(
          _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(halves)), 16));
    }
  }
}

// How 64 bytes of codes, the same columns of 16 rows, become registers; and what a product with
// them has too much for each unit of the activations' sum.
template <class Rows, WeightType type>
struct Unpacked;

template <>
struct Unpacked<SixteenBitRows, WeightType::kInt4> {
  static constexpr int kWords = 4, kZero = 8;
  __m512i words[kWords];  // 16-bit pairs of columns, in the order of SixteenBitRows

  explicit Unpacked(__m512i codes) {
    const __m512i mask = _mm512_set1_epi16(0xf);
    words[0] = _mm512_and_si512(codes, mask);
    words[1] = _mm512_and_si512(_mm512_srli_epi16(codes, 8), mask);
    words[2] = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
    words[3] = _mm512_srli_epi16(codes, 12);
  }
};

template <>
struct Unpacked<SixteenBitRows, WeightType::kInt8> {
  static constexpr int kWords = 2, kZero = 0;
  __m512i words[kWords];

  explicit Unpacked(__m512i codes) {
    words[0] = _mm512_srai_epi16(_mm512_slli_epi16(codes, 8), 8);
    words[1] = _mm512_srai_epi16(codes, 8);
  }
};

template <>
struct Unpacked<EightBitRows, WeightType::kInt4> {
  static constexpr int kWords = 2, kZero = 8;
  __m512i words[kWords];  // four columns each, unsigned

  explicit Unpacked(__m512i codes) {
    const __m512i mask = _mm512_set1_epi8(0xf);
    words[0] = _mm512_and_si512(codes, mask);
    words[1] = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
  }
};

template <>
struct Unpacked<EightBitRows, WeightType::kInt8> {
  static constexpr int kWords = 1, kZero = 128;  // made unsigned by adding 128
  __m512i words[kWords];

  explicit Unpacked(__m512i codes) {
    words[0] = _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
  }
};

// sum + the products of the columns in a 32-bit word of weights with those at `x`.
inline __m512i add_product(__m512i sum, __m512i weights, const int16_t* x) {
  return _mm512_dpwssd_epi32(sum, weights, broadcast(x));
}
inline __m512i add_product(__m512i sum, __m512i weights, const int8_t* x) {
  return _mm512_dpbusd_epi32(sum, weights, broadcast(x));
}

// Rows of activations that share unpacked codes: their sums, in integers and in floats, are in
// registers.
constexpr int kMostRows = 8;

// One row tile times rows row .. row + count of activations.
template <class Rows, WeightType type, FloatType scale_type, bool asymmetric, int count>
inline void multiply_tile(const Matrix& m, int tile, const Rows& x, int row, const Output& out) {
  using Line = Unpacked<Rows, type>;
  constexpr int kLines = block_bytes(type) / 64;
  constexpr int kColumns = kColumnBlock / (kLines * Line::kWords);  // of a word
  // Independent sums for each row, as the instruction takes 4 to 5 cycles and two can start in one.
  constexpr int kChains = count == 1 ? 4 : count <= 4 ? 2 : 1;
  const int blocks = m.blocks();
  const uint8_t* codes = block_codes(m, tile, 0);
  __m512 sums[count];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  int block = 0;
  for (int group = 0; group < m.groups(); ++group) {
    const size_t at = (static_cast<size_t>(tile) * m.groups() + group) * kRowTile;
    const __m512 weight_scale = load16<scale_type>(m.scales, at);
    __m512i zero = _mm512_set1_epi32(Line::kZero);
    if constexpr (asymmetric) {
      zero = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(m.zeros + at)));
      // Zeros are those of signed codes, and these codes have 128 added.
      if constexpr (Line::kZero == 128) zero = _mm512_add_epi32(zero, _mm512_set1_epi32(128));
    }
    const int last = std::min(blocks, (group + 1) * m.blocks_per_group);
    for (; block < last; ++block) {
      __m512i dots[count][kChains];
      for (int r = 0; r < count; ++r) {
        const int32_t sum = x.row_sums(row + r)[block];
        if constexpr (asymmetric) {
          dots[r][0] = _mm512_mullo_epi32(zero, _mm512_set1_epi32(-sum));
        } else {
          dots[r][0] = _mm512_set1_epi32(-Line::kZero * sum);
        }
        for (int chain = 1; chain < kChains; ++chain) dots[r][chain] = _mm512_setzero_si512();
      }
      const size_t offset = static_cast<size_t>(block) * kColumnBlock;
#pragma GCC unroll 8
      for (int line = 0; line < kLines; ++line, codes += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetchBytes), _MM_HINT_T0);
        const Line weights(_mm512_loadu_si512(codes));
        for (int k = 0; k < Line::kWords; ++k) {
          const int word = line * Line::kWords + k;
          for (int r = 0; r < count; ++r) {
            __m512i& dot = dots[r][word % kChains];
            dot = add_product(dot, weights.words[k],
                              x.row_values(row + r) + offset + word * kColumns);
          }
        }
      }
      for (int r = 0; r < count; ++r) {
        for (int chain = 1; chain < kChains; ++chain) {
          dots[r][0] = _mm512_add_epi32(dots[r][0], dots[r][chain]);
        }
        const __m512 scale = _mm512_set1_ps(x.row_scales(row + r)[block]);
        const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[r][0]), scale);
        sums[r] = _mm512_fmadd_ps(product, weight_scale, sums[r]);
      }
    }
  }
  const int output = tile * kRowTile, outputs = std::min(kRowTile, m.rows - output);
  for (int r = 0; r < count; ++r) {
    alignas(64) float stored[kRowTile];
    _mm512_store_ps(stored, sums[r]);
    store_output(m, out, row + r, output, outputs, stored);
  }
}

template <class Rows>
void multiply(const Matrix& m, int begin, int end, const Rows& x, const Output& out) {
  with_packed_types(m, [&](auto type, auto scale, auto asymmetric) {
    for (int first = 0; first < x.rows; first += kRowBlock) {
      const int rows = std::min(kRowBlock, x.rows - first);
      for (int tile = begin; tile < end; ++tile) {
        in_row_steps<kMostRows>(rows, [&](auto count, int row) {
          multiply_tile<Rows, type.value, scale.value, asymmetric.value, count.value>(
              m, tile, x, first + row, out);
        });
      }
    }
  });
}

}  // namespace

size_t product_scratch(int, int) { return 0; }

void integer_product(const Matrix& m, int begin, int end, const Activations& activations,
                     Output out, Scratch) {
  activations.type == ComputeType::kInt8
      ? multiply(m, begin, end, eight_bit_rows(activations), out)
      : multiply(m, begin, end, sixteen_bit_rows(activations), out);
}

}  // namespace ncl::avx512_vnni
