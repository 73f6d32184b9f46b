// What the products of every instruction set share: from run-time types to template instances, and
// the walk over a matrix. A set writes the inner loops.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "kernels/layout.h"
#include "kernels/scalar.h"

namespace ncl {
namespace {

template <auto value>
using Constant = std::integral_constant<decltype(value), value>;

// f(Constant<type>).
template <class F>
void with_float_type(FloatType type, F&& f) {
  switch (type) {
    case FloatType::kFp32:
      return f(Constant<FloatType::kFp32>{});
    case FloatType::kBf16:
      return f(Constant<FloatType::kBf16>{});
    case FloatType::kFp16:
      return f(Constant<FloatType::kFp16>{});
  }
}

// f(Constant<scheme>) of a packed matrix.
template <class F>
void with_scheme(const Matrix& m, F&& f) {
  switch (m.scheme()) {
    case Scheme::kSym:
      return f(Constant<Scheme::kSym>{});
    case Scheme::kAsym:
      return f(Constant<Scheme::kAsym>{});
    case Scheme::kAffine:
      return f(Constant<Scheme::kAffine>{});
    case Scheme::kAffine8:
      return f(Constant<Scheme::kAffine8>{});
  }
}

// f(Constant<type of codes>, Constant<type of scales>, Constant<scheme>) of a packed matrix.
template <class F>
void with_packed_types(const Matrix& m, F&& f) {
  with_float_type(m.scale_type, [&](auto scale) {
    with_scheme(m, [&](auto scheme) {
      m.type == WeightType::kInt4 ? f(Constant<WeightType::kInt4>{}, scale, scheme)
                                  : f(Constant<WeightType::kInt8>{}, scale, scheme);
    });
  });
}

// f(Constant<type of elements>) of a row-major matrix.
template <class F>
void with_dense_type(const Matrix& m, F&& f) {
  with_float_type(m.type == WeightType::kFp32   ? FloatType::kFp32
                  : m.type == WeightType::kBf16 ? FloatType::kBf16
                                                : FloatType::kFp16,
                  std::forward<F>(f));
}

// f(Constant<N>, row) over all rows, N = kMost at a time and then the rest.
template <int kMost, class F>
inline void in_row_steps(int rows, F&& f) {
  int row = 0;
  for (; row + kMost <= rows; row += kMost) f(Constant<kMost>{}, row);
  if constexpr (kMost > 1) {
    if (row < rows) {
      in_row_steps<kMost - 1>(rows - row, [&](auto n, int rest) { f(n, row + rest); });
    }
  }
}

// Floats of the sums of `walk_panels`.
[[maybe_unused]] inline size_t panel_sums(int rows) { return static_cast<size_t>(rows) * kRowTile; }

// Row tiles [begin, end) times `rows` rows of activations, a panel of at most kPanelBlocks blocks
// of 32 columns at a time: add_panel(tile, first block, blocks) adds the panel's products to
// sums [rows][16], which are stored when a tile is complete.
template <int kPanelBlocks, class AddPanel>
inline void walk_panels(const Matrix& m, int begin, int end, int rows, float* sums,
                        const Output& out, AddPanel&& add_panel) {
  for (int tile = begin; tile < end; ++tile) {
    std::fill_n(sums, panel_sums(rows), 0.0f);
    for (int first = 0; first < m.blocks(); first += kPanelBlocks) {
      add_panel(tile, first, std::min(kPanelBlocks, m.blocks() - first));
    }
    const int output = tile * kRowTile, count = std::min(kRowTile, m.rows - output);
    for (int row = 0; row < rows; ++row) {
      store_output(m, out, row, output, count, sums + row * kRowTile);
    }
  }
}

}  // namespace
}  // namespace ncl
