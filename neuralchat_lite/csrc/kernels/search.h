// The scales and the zeros of groups that are better than plain rounding's: quantization/search.py,
// to the same bits. A lane is a group of its own, one of eight neighbouring rows, so that sums are
// in the order of columns and nothing is added across lanes.
#pragma once

#ifdef __AVX__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

namespace ncl {
namespace {

constexpr int kLanes = 8;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t LaneMask __attribute__((vector_size(kLanes * sizeof(int32_t))));

// Widths of the whole range that are tried, and steps that the range is moved by.
constexpr float kWidths[] = {1.02f, 0.94f, 0.86f, 0.78f, 0.7f};
constexpr float kShifts[] = {-0.5f, 0.0f, 0.5f};
// Where the largest weight goes, if symmetric.
constexpr float kTopLevels[] = {8.75f, 8.5f, 8.25f, 8.0f, 7.75f, 7.5f, 7.25f, 7.0f};
constexpr int kRefinements = 2;
constexpr float kNarrow =
    0x1p-10f;  // a range this narrow beside the largest weight is not searched

// Nearest integer, ties to even, of values far below 2^22: for float and Lanes.
template <class T>
inline T round_even(T x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: no fraction bits are left
  return (x + kMagic) - kMagic;
}

inline Lanes all(float value) { return Lanes{} + value; }
#ifdef __AVX__  // gcc makes two instructions of the comparisons below
inline Lanes at_most(Lanes x, Lanes most) { return _mm256_min_ps(x, most); }
inline Lanes at_least(Lanes x, Lanes least) { return _mm256_max_ps(x, least); }
#else
inline Lanes at_most(Lanes x, Lanes most) { return x < most ? x : most; }
inline Lanes at_least(Lanes x, Lanes least) { return x > least ? x : least; }
#endif
inline Lanes between(Lanes x, float least, float most) {
  return at_most(at_least(x, all(least)), all(most));
}
inline Lanes magnitude(Lanes x) { return x < 0.0f ? -x : x; }
inline LaneMask is_finite(Lanes x) { return x - x == 0.0f; }
inline Lanes level_of(Lanes x) { return between(round_even(x), -8.0f, 7.0f); }

// Levels d are codes less 8. A weight is scale * (d - zero).
struct Fit {
  Lanes scale, zero;
  Lanes gain;  // how much smaller the squared error is than that of the mean, or of nothing

  void take(const Fit& other, LaneMask where) {
    scale = where ? other.scale : scale;
    zero = where ? other.zero : zero;
    gain = where ? other.gain : gain;
  }
  // A fit that divides by zero is none.
  LaneMask is_better_than(Lanes other) const {
    return is_finite(scale) & is_finite(zero) & (gain > other);
  }
};

struct Groups {
  const float* weights;  // [count][kLanes]
  int count;
  Lanes sum;

  Lanes column(int i) const {
    Lanes found;
    std::memcpy(&found, weights + i * kLanes, sizeof found);
    return found;
  }

  // The levels that weights have at a scale and a zero, and the best scale for them: with the zero
  // that belongs to it (free), or with the one that is given.
  Fit fit(Lanes scale, Lanes zero, bool free) const {
    const Lanes inverse = 1.0f / scale;
    Lanes d = {}, dd = {}, wd = {};
    for (int i = 0; i < count; ++i) {
      const Lanes weight = column(i), level = level_of(weight * inverse + zero);
      d += level;
      dd += level * level;
      wd += weight * level;
    }
    const float n = static_cast<float>(count);
    if (free) {
      const Lanes over = n * wd - sum * d, under = n * dd - d * d, best = over / under;
      return {best, -((sum - best * d) / n) / best, best * over};
    }
    const Lanes over = wd - zero * sum, under = (dd - 2.0f * zero * d) + n * (zero * zero);
    return {over / under, zero, over / under * over};
  }

  Lanes squared_error(const float* levels, Lanes scale, Lanes zero) const {
    Lanes sum_of_squares = {};
    for (int i = 0; i < count; ++i) {
      Lanes level;
      std::memcpy(&level, levels + i * kLanes, sizeof level);
      const Lanes error = column(i) - scale * (level - zero);
      sum_of_squares += error * error;
    }
    return sum_of_squares;
  }
};

inline Fit search_symmetric(const Groups& groups, Lanes largest) {
  Fit best = {};
  for (float level : kTopLevels) {
    const Fit fit = groups.fit(-largest / level, Lanes{}, false);
    best.take(fit, fit.is_better_than(best.gain));
  }
  return best;
}

inline Fit search_range(const Groups& groups, Lanes low, Lanes range, LaneMask wide, bool whole) {
  Fit best = {};
  for (float width : kWidths) {
    const Lanes scale = range / 15.0f * width;
    for (float shift : kShifts) {
      const Lanes minimum = low + (0.5f * (range - 15.0f * scale) + shift * scale);
      Lanes zero = -minimum / scale - 8.0f;
      if (whole) zero = between(round_even(zero), -128.0f, 119.0f);
      const Fit fit = groups.fit(scale, zero, !whole);
      best.take(fit, wide & (fit.scale > 0.0f) & fit.is_better_than(best.gain));
    }
  }
  return best;
}

// The best scales that were found, before they are rounded to their stored type, and the zeros that
// are stored: whole, in eighths, 0, or those of minima that are not rounded yet. A scale of 0: none
// was found.
inline Fit search_groups(const Groups& groups, Lanes low, Lanes high, Scheme scheme) {
  const bool free = has_minima(scheme);
  const Lanes largest = high >= -low ? high : low;
  const LaneMask wide = high - low > kNarrow * magnitude(largest);
  Fit best = scheme == Scheme::kSym
                 ? search_symmetric(groups, largest)
                 : search_range(groups, low, high - low, wide, scheme == Scheme::kAsym);
  LaneMask going = best.scale != 0.0f;
  for (int i = 0; i < kRefinements; ++i) {
    const Fit next = groups.fit(best.scale, best.zero, free);
    going &= next.is_better_than(best.gain);
    best.take(next, going);
  }
  if (scheme != Scheme::kAffine8) return best;
  const LaneMask found = best.scale != 0.0f;
  best = groups.fit(best.scale, between(round_even(8.0f * best.zero), -127.0f, 127.0f) * 0.125f,
                    false);
  const LaneMask good = found & best.is_better_than(Lanes{});
  best.scale = good ? best.scale : Lanes{};
  return best;
}

}  // namespace
}  // namespace ncl
