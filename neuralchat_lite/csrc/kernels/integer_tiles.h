// The products of packed weights with rows of bytes (eight_bit_rows.h) that vector instruction sets
// share. A set describes its registers and its product of bytes; here are the loops.
//
// A word is the bytes of 4 columns of one output row, which is a 32-bit lane. A few rows of
// activations unpack codes to bytes in registers; more rows share a panel that is unpacked once
// into the cache.
#pragma once

#include <xmmintrin.h>

#include <algorithm>
#include <bit>

#include "kernels/dispatch.h"
#include "kernels/eight_bit_rows.h"

namespace ncl {
namespace {

// Codes are read once and in order, but the hardware prefetcher stops at the end of a 4 kB page.
// 1 kB ahead reached 0.72 of the bandwidth, 2 to 4 kB reach 0.85 (docs/design.md).
constexpr int kPrefetchBytes = 3072;
constexpr int kWordBytes = kRowTile * 4;            // a word of each of 16 output rows
constexpr int kWords = kColumnBlock / 4;            // of a block
constexpr int kBytesOfBlock = kWords * kWordBytes;  // as bytes, unpacked

// Nibbles and bytes are codes in memory; a panel is what Product takes, in the cache.
enum class Stored { kNibbles, kBytes, kPanel };

constexpr int stored_block(Stored stored) {
  return stored == Stored::kNibbles ? kBytesOfBlock / 2 : kBytesOfBlock;
}

// Neighbouring row tiles, from some block on.
struct Tiles {
  const uint8_t* data;
  size_t data_stride;  // bytes from tile to tile
  const void* scales;  // [tile][group][16], all groups
  const int8_t* zeros;
  const void* minima;
  int groups;
  int blocks_per_group;
  size_t ahead;  // bytes from the codes that are read to those that are prefetched
  size_t skip;   // bytes to add where that is beyond the end of a tile: its neighbours are read too
};

// Adds blocks [first, last) of `tiles` row tiles times rows row .. row + rows of x to
// sums [rows][tiles * 16].
//
// Set: Ints and Floats, kRegisters registers of kLanes 32-bit lanes, and their operations.
// Product: add(sum, unsigned or signed bytes, x) and dot(sum) of a plane; kZero, what its bytes are
// larger by than code - zero with a symmetric zero; kSumsStart: sums may start from any integers.
//
// Not inline: in a larger function gcc keeps fewer of the sums in registers, which costs half of
// the speed.
template <class Set, class Product, Stored stored, FloatType scale_type, Scheme scheme, int planes,
          int tiles, int rows>
[[gnu::noinline]] void multiply_tiles(const Tiles& weights, const ByteRows<planes>& x, int row,
                                      int first, int last, float* sums) {
  using Ints = typename Set::Ints;
  using Floats = typename Set::Floats;
  constexpr int kVectors = kRowTile / Set::kLanes;  // of a tile
  constexpr int kAll = tiles * kVectors;
  constexpr int kLineWords = stored == Stored::kNibbles ? 2 : 1;
  constexpr int kVectorBytes = Set::kLanes * 4;

  const uint8_t* data = weights.data;
  constexpr bool kMinima = has_minima(scheme);
  // Float sums stay in registers if there are enough.
  constexpr bool kKept = rows * kAll * (planes + 1) + kAll + 2 <= Set::kRegisters;
  const auto place = [&](int r, int v) { return sums + (r * kAll + v) * Set::kLanes; };
  const int8_t* values = x.row_values(row) + static_cast<size_t>(first) * planes * kColumnBlock;
  const size_t row_stride = static_cast<size_t>(x.blocks) * planes * kColumnBlock;
  const float* row_scales = x.row_scales(row);
  const int32_t* row_sums = x.row_sums(row);
  Floats total[rows][kAll];
  if constexpr (kKept) {
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < kAll; ++v) total[r][v] = Set::load_floats(place(r, v));
    }
  }
  int group = first / weights.blocks_per_group;
  for (int block = first; block < last; ++group) {
    Floats weight_scale[kAll], minimum[kAll];
    Ints zero[kAll];
    for (int v = 0; v < kAll; ++v) {
      const size_t at = (static_cast<size_t>(v / kVectors) * weights.groups + group) * kRowTile +
                        v % kVectors * Set::kLanes;
      weight_scale[v] = Set::template load_scales<scale_type>(weights.scales, at);
      if constexpr (kMinima) {
        minimum[v] =
            Set::template load_minima<scheme, scale_type>(weights.minima, at, weight_scale[v]);
      }
      if constexpr (stored != Stored::kPanel) {
        // Those of the next tiles: nothing else asks for the lines of a tile's scales in time.
        constexpr size_t kSize = scale_type == FloatType::kFp32 ? 4 : 2;
        const size_t next = at + static_cast<size_t>(tiles) * weights.groups * kRowTile;
        _mm_prefetch(static_cast<const char*>(weights.scales) + next * kSize, _MM_HINT_T0);
        if constexpr (kMinima) {
          constexpr size_t kMinimumSize = scheme == Scheme::kAffine8 ? 1 : kSize;
          _mm_prefetch(static_cast<const char*>(weights.minima) + next * kMinimumSize, _MM_HINT_T0);
        }
      }
      if constexpr (scheme == Scheme::kAsym) {
        zero[v] = Set::zero_pairs(weights.zeros + at, Product::kZero == 128 ? 128 : 0);
      }
    }
    const int stop = std::min(last, (group + 1) * weights.blocks_per_group);
    for (; block < stop; ++block) {
      // What the sums of a row are too large by.
      const auto excess = [&](int r, int v) {
        const int32_t* of_row = row_sums + r * x.blocks + block;
        if constexpr (scheme == Scheme::kAsym) {
          return Set::times_sum(zero[v], *of_row);
        } else {
          return Set::template shift_left<std::countr_zero(0u + Product::kZero)>(
              Set::broadcast(of_row));
        }
      };
      // Nibbles are the codes themselves, which minima belong to.
      constexpr bool kExcess =
          scheme == Scheme::kAsym || Product::kZero == 128 || (Product::kZero == 8 && !kMinima);
      Ints sum[planes][rows][kAll];
      for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < kAll; ++v) {
          for (int p = 0; p < planes; ++p) sum[p][r][v] = Set::zero();
          if constexpr (kExcess && Product::kSumsStart) {
            sum[planes - 1][r][v] = Set::sub(Set::zero(), excess(r, v));
          }
        }
      }
      const bool beyond = static_cast<size_t>(block + 1) * stored_block(stored) + weights.ahead >
                          weights.data_stride;
      const size_t ahead = weights.ahead + (beyond ? weights.skip : 0);
#pragma GCC unroll 8
      for (int line = 0; line < kWords / kLineWords; ++line) {
        const auto load_words = [&](int v, Ints* word) {
          const uint8_t* from = data + v / kVectors * weights.data_stride + line * kWordBytes +
                                v % kVectors * kVectorBytes;
          if (stored != Stored::kPanel && v % kVectors == 0) {
            _mm_prefetch(reinterpret_cast<const char*>(from + ahead), _MM_HINT_T0);
          }
          const Ints codes = Set::load(from);
          if constexpr (stored == Stored::kNibbles) {
            word[0] = Set::low_nibbles(codes);
            word[1] = Set::high_nibbles(codes);
          } else {
            word[0] = stored == Stored::kPanel ? codes : Product::bytes(codes);
          }
        };
        const auto load_row = [&](int r, int p, int w) {
          return Set::broadcast(values + r * row_stride + p * kColumnBlock +
                                (line * kLineWords + w) * 4);
        };
        // In registers are the fewer of the two; the others pass one by one.
        if constexpr (rows * planes < kAll) {
          Ints a[kLineWords][rows][planes];
          for (int w = 0; w < kLineWords; ++w) {
            for (int r = 0; r < rows; ++r) {
              for (int p = 0; p < planes; ++p) a[w][r][p] = load_row(r, p, w);
            }
          }
          for (int v = 0; v < kAll; ++v) {
            Ints word[kLineWords];
            load_words(v, word);
            for (int w = 0; w < kLineWords; ++w) {
              for (int r = 0; r < rows; ++r) {
                for (int p = 0; p < planes; ++p) {
                  sum[p][r][v] = Product::add(sum[p][r][v], word[w], a[w][r][p]);
                }
              }
            }
          }
        } else {
          Ints word[kAll][kLineWords];
          for (int v = 0; v < kAll; ++v) load_words(v, word[v]);
          for (int w = 0; w < kLineWords; ++w) {
            for (int r = 0; r < rows; ++r) {
              for (int p = 0; p < planes; ++p) {
                const Ints a = load_row(r, p, w);
                for (int v = 0; v < kAll; ++v) {
                  sum[p][r][v] = Product::add(sum[p][r][v], word[v][w], a);
                }
              }
            }
          }
        }
      }
      data += stored_block(stored);
      values += planes * kColumnBlock;
      for (int r = 0; r < rows; ++r) {
        const float scale = row_scales[r * x.blocks + block];
        const Floats of_minima = Set::scaled_sum(row_sums[r * x.blocks + block], scale);
        for (int v = 0; v < kAll; ++v) {
          Ints dot = Product::template dot<1>(sum[planes - 1][r][v]);
          if constexpr (planes == 2) {
            dot = Set::add(dot, Product::template dot<256>(sum[0][r][v]));
          }
          if constexpr (kExcess && !Product::kSumsStart) dot = Set::sub(dot, excess(r, v));
          if constexpr (!kKept) total[r][v] = Set::load_floats(place(r, v));
          total[r][v] = Set::fma(Set::scaled(dot, scale), weight_scale[v], total[r][v]);
          if constexpr (kMinima) total[r][v] = Set::fma(of_minima, minimum[v], total[r][v]);
          if constexpr (!kKept) Set::store_floats(place(r, v), total[r][v]);
        }
      }
    }
  }
  if constexpr (kKept) {
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < kAll; ++v) Set::store_floats(place(r, v), total[r][v]);
    }
  }
}

// How many row tiles and rows of activations share registers.
struct Shape {
  int tiles;
  int rows;
};

// Blocks of a panel: 8 kB of the first-level cache for a tile.
constexpr int kPanelBlocks = 16;
// Rows of activations that pass a panel. They lie in the second-level cache. A multiple of the rows
// that share registers.
constexpr int kPanelRows = 192;

// What is measured for a set:
//   kFewRows<planes>, kManyRows<planes>: a Shape for rows of one or two planes
//   kMostFew: so many rows read the codes as they lie; unpacking is paid off by more
template <class Tuning>
size_t tiles_scratch(int rows, int cols) {
  constexpr int tiles =
      std::max(Tuning::template kFewRows<1>.tiles, Tuning::template kManyRows<1>.tiles);
  const size_t scales = static_cast<size_t>(blocks_of(cols)) * tiles * kRowTile;
  return scratch_bytes<float>(panel_sums(std::min(rows, kPanelRows)) * tiles) +
         scratch_bytes<uint8_t>(static_cast<size_t>(kPanelBlocks) * tiles * kBytesOfBlock) +
         2 * scratch_bytes<float>(scales);  // minima, too
}

template <int tiles>
inline void store_tiles(const Matrix& m, int tile, int row, int rows, const float* sums,
                        const Output& out) {
  for (int t = 0; t < tiles; ++t) {
    const int output = (tile + t) * kRowTile, count = std::min(kRowTile, m.rows - output);
    for (int r = 0; r < rows; ++r) {
      store_output(m, out, row + r, output, count, sums + (r * tiles + t) * kRowTile);
    }
  }
}

inline Tiles tiles_of(const Matrix& m, int tile) {
  const size_t group = static_cast<size_t>(tile) * m.groups() * kRowTile;
  const size_t scale_bytes = m.scale_type == FloatType::kFp32 ? 4 : 2;
  const size_t minimum_bytes = m.byte_minima ? 1 : scale_bytes;
  return {block_codes(m, tile, 0),
          static_cast<size_t>(m.blocks()) * block_bytes(m.type),
          static_cast<const uint8_t*>(m.scales) + group * scale_bytes,
          m.zeros ? m.zeros + group : nullptr,
          m.minima ? static_cast<const uint8_t*>(m.minima) + group * minimum_bytes : nullptr,
          m.groups(),
          m.blocks_per_group,
          kPrefetchBytes,
          0};
}

// Few rows: codes are read once.
template <class Set, class Product, WeightType type, Shape shape, int planes>
void multiply_few(const Matrix& m, int begin, int end, const ByteRows<planes>& x, Output out,
                  Scratch scratch) {
  constexpr Stored kStored = type == WeightType::kInt4 ? Stored::kNibbles : Stored::kBytes;
  float* sums = take<float>(scratch, panel_sums(shape.rows) * shape.tiles);
  with_float_type(m.scale_type, [&](auto scale) {
    with_scheme(m, [&](auto scheme) {
      in_row_steps<shape.tiles>(end - begin, [&](auto tiles, int from) {
        const int tile = begin + from;
        Tiles weights = tiles_of(m, tile);
        if (from == 0) {  // nobody has asked for the first codes
          for (int t = 0; t < tiles.value; ++t) {
            for (int line = 0; line < kPrefetchBytes; line += kWordBytes) {
              _mm_prefetch(
                  reinterpret_cast<const char*>(weights.data + t * weights.data_stride + line),
                  _MM_HINT_T0);
            }
          }
        }
        weights.skip = (tiles.value - 1) * weights.data_stride;
        in_row_steps<shape.rows>(x.rows, [&](auto rows, int row) {
          std::fill_n(sums, panel_sums(rows.value) * tiles.value, 0.0f);
          multiply_tiles<Set, Product, kStored, scale.value, scheme.value, planes, tiles.value,
                         rows.value>(weights, x, row, 0, m.blocks(), sums);
          store_tiles<tiles.value>(m, tile, row, rows.value, sums, out);
          // These tiles are in the cache now. Further rows have time to fetch the next ones.
          weights.ahead = tiles.value * weights.data_stride;
          weights.skip = 0;
        });
      });
    });
  });
}

// Unpacks `count` blocks of codes to the bytes that Product takes.
template <class Set, class Product, WeightType type>
inline void unpack(const uint8_t* codes, int count, uint8_t* panel) {
  for (const uint8_t* end = codes + count * block_bytes(type); codes < end; codes += kWordBytes) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetchBytes), _MM_HINT_T0);
    for (int v = 0; v < kWordBytes; v += Set::kLanes * 4) {
      const auto line = Set::load(codes + v);
      if constexpr (type == WeightType::kInt4) {
        Set::store(panel + v, Set::low_nibbles(line));
        Set::store(panel + v + kWordBytes, Set::high_nibbles(line));
      } else {
        Set::store(panel + v, Product::bytes(line));
      }
    }
    panel += kWordBytes * kBytesOfBlock / block_bytes(type);
  }
}

// Many rows: codes and scales are unpacked once for kPanelRows of them.
template <class Set, class Product, WeightType type, Shape shape, int planes>
void multiply_many(const Matrix& m, int begin, int end, const ByteRows<planes>& x, Output out,
                   Scratch scratch) {
  float* sums = take<float>(scratch, panel_sums(std::min(x.rows, kPanelRows)) * shape.tiles);
  uint8_t* panel =
      take<uint8_t>(scratch, static_cast<size_t>(kPanelBlocks) * shape.tiles * kBytesOfBlock);
  const size_t groups = static_cast<size_t>(m.blocks()) * shape.tiles * kRowTile;  // at most
  float* scales = take<float>(scratch, groups);
  float* minima = take<float>(scratch, groups);
  const auto run = [&](auto scheme, auto tiles, int tile, int row, int rows) {
    Tiles weights = tiles_of(m, tile);
    const uint8_t* codes = weights.data;
    const size_t stride = weights.data_stride;
    with_float_type(m.scale_type, [&](auto type_of_scale) {
      for (int at = 0; at < tiles.value * m.groups() * kRowTile; at += Set::kLanes) {
        const auto scale = Set::template load_scales<type_of_scale.value>(weights.scales, at);
        Set::store_floats(scales + at, scale);
        if constexpr (has_minima(scheme.value)) {
          Set::store_floats(minima + at,
                            Set::template load_minima<scheme.value, type_of_scale.value>(
                                weights.minima, at, scale));
        }
      }
    });
    weights.scales = scales;
    weights.minima = minima;
    weights.data = panel;
    weights.data_stride = kPanelBlocks * kBytesOfBlock;
    std::fill_n(sums, panel_sums(rows) * tiles.value, 0.0f);
    for (int first = 0; first < m.blocks(); first += kPanelBlocks) {
      const int last = std::min(first + kPanelBlocks, m.blocks());
      for (int t = 0; t < tiles.value; ++t) {
        const size_t at = t * stride + static_cast<size_t>(first) * block_bytes(type);
        unpack<Set, Product, type>(codes + at, last - first, panel + t * weights.data_stride);
      }
      // While rows are multiplied, the codes of the next panel arrive.
      constexpr int kLines = kPanelBlocks * block_bytes(type) / kWordBytes;
      const uint8_t* next = codes + static_cast<size_t>(first + kPanelBlocks) * block_bytes(type);
      in_row_steps<shape.rows>(rows, [&](auto count, int from) {
        for (int line = kLines * from / rows; line < kLines * (from + count.value) / rows; ++line) {
          for (int t = 0; t < tiles.value; ++t) {
            _mm_prefetch(reinterpret_cast<const char*>(next + t * stride + line * kWordBytes),
                         _MM_HINT_T0);
          }
        }
        // Minima are floats in the panel's company.
        constexpr Scheme kScheme = has_minima(scheme.value) ? Scheme::kAffine : scheme.value;
        multiply_tiles<Set, Product, Stored::kPanel, FloatType::kFp32, kScheme, planes, tiles.value,
                       count.value>(weights, x, row + from, first, last,
                                    sums + panel_sums(from) * tiles.value);
      });
    }
    store_tiles<tiles.value>(m, tile, row, rows, sums, out);
  };
  for (int row = 0; row < x.rows; row += kPanelRows) {
    const int rows = std::min(kPanelRows, x.rows - row);
    in_row_steps<shape.tiles>(end - begin, [&](auto tiles, int from) {
      with_scheme(m, [&](auto scheme) { run(scheme, tiles, begin + from, row, rows); });
    });
  }
}

template <class Set, class Product, WeightType type, class Tuning, int planes>
void multiply_bytes(const Matrix& m, int begin, int end, const ByteRows<planes>& x,
                    const Output& out, Scratch scratch) {
  if (x.rows <= Tuning::kMostFew) {
    multiply_few<Set, Product, type, Tuning::template kFewRows<planes>>(m, begin, end, x, out,
                                                                        scratch);
  } else {
    multiply_many<Set, Product, type, Tuning::template kManyRows<planes>>(m, begin, end, x, out,
                                                                          scratch);
  }
}

}  // namespace
}  // namespace ncl
