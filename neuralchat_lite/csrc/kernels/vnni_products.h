// Packed weights times rows of bytes by vpdpbusd, which multiplies unsigned bytes of weights with
// signed ones of activations and adds up four products in a 32-bit lane: for sets of any width.
#pragma once

#include <algorithm>

#include "kernels/integer_tiles.h"

namespace ncl {
namespace {

template <class Set, WeightType type>
struct VnniProduct {
  using Ints = typename Set::Ints;
  static constexpr int kZero = type == WeightType::kInt4 ? 8 : 128;
  static constexpr bool kSumsStart = true;
  static Ints bytes(Ints codes) {  // unsigned
    return type == WeightType::kInt4 ? codes : Set::flip_signs(codes);
  }
  static Ints add(Ints sum, Ints weights, Ints x) { return Set::add_products(sum, weights, x); }
  template <int factor>
  static Ints dot(Ints sum) {
    return factor == 1 ? sum : Set::template shift_left<8>(sum);
  }
};

template <class Set, class Tuning, int planes>
void multiply_planes(const Matrix& m, int begin, int end, const Activations& x, const Output& out,
                     Scratch scratch) {
  const auto with_type = [&](auto type) {
    using Product = VnniProduct<Set, type.value>;
    multiply_bytes<Set, Product, type.value, Tuning, planes>(m, begin, end, byte_rows<planes>(x),
                                                             out, scratch);
  };
  m.type == WeightType::kInt4 ? with_type(Constant<WeightType::kInt4>{})
                              : with_type(Constant<WeightType::kInt8>{});
}

template <class Set, class Tuning>
void multiply_vnni(const Matrix& m, int begin, int end, const Activations& x, const Output& out,
                   Scratch scratch) {
  x.type == ComputeType::kInt8 ? multiply_planes<Set, Tuning, 1>(m, begin, end, x, out, scratch)
                               : multiply_planes<Set, Tuning, 2>(m, begin, end, x, out, scratch);
}

}  // namespace
}  // namespace ncl
