// The scale and the zero of a group that are better than plain rounding's: quantization/search.py,
// to the same bits. Sums have eight lanes, element i in lane i % 8, which a compiler makes vectors
// of.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/kernels.h"

namespace ncl {
namespace {

constexpr int kLanes = 8;
constexpr int kSteps = 8;                            // widths of the range that are tried
constexpr float kWidest = 1.03f, kNarrower = 0.05f;  // of the whole range
constexpr float kShifts[] = {-0.5f, 0.0f, 0.5f};     // steps that the range is moved by
constexpr float kFirstLevel = 8.75f,
                kNextLevel = 0.25f;  // where the largest weight goes, if symmetric
constexpr int kRefinements = 2;
constexpr float kNarrow =
    0x1p-10f;  // a range this narrow beside the largest weight is not searched

// Nearest integer, ties to even, of values far below 2^22.
inline float round_even(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: no fraction bits are left
  return (x + kMagic) - kMagic;
}

inline float level_of(float x) { return std::min(std::max(round_even(x), -8.0f), 7.0f); }

// add(i, lane) for each of `count` elements, eight at a time.
template <class Add>
inline void in_lanes(int count, Add&& add) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (int lane = 0; i < count; ++i, ++lane) add(i, lane);
}

inline float sum_of(float (&lanes)[kLanes]) {
  for (int half = kLanes / 2; half; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// Levels d are codes less 8. A weight is scale * (d - zero).
struct Fit {
  float scale, zero;
  float gain;  // how much smaller the squared error is than that of the mean, or of nothing
};

struct Group {
  const float* weights;
  int count;
  float sum;

  // The levels that weights have at a scale and a zero, and the best scale for them: with the zero
  // that belongs to it, or with the one that is given.
  Fit fit(float scale, float zero, bool free) const {
    const float inverse = 1 / scale;
    float d_lanes[kLanes] = {}, dd_lanes[kLanes] = {}, wd_lanes[kLanes] = {};
    in_lanes(count, [&](int i, int lane) {
      const float d = level_of(weights[i] * inverse + zero);
      d_lanes[lane] += d;
      dd_lanes[lane] += d * d;
      wd_lanes[lane] += weights[i] * d;
    });
    const float d = sum_of(d_lanes), dd = sum_of(dd_lanes), wd = sum_of(wd_lanes);
    const float n = static_cast<float>(count);
    if (free) {
      const float over = n * wd - sum * d, under = n * dd - d * d;
      const float best = over / under;
      return {best, -((sum - best * d) / n) / best, best * over};
    }
    const float over = wd - zero * sum, under = (dd - 2 * zero * d) + n * (zero * zero);
    return {over / under, zero, over / under * over};
  }

  float squared_error(const int8_t* codes, float scale, float zero) const {
    float lanes[kLanes] = {};
    in_lanes(count, [&](int i, int lane) {
      const float error = weights[i] - scale * (static_cast<float>(codes[i] - 8) - zero);
      lanes[lane] += error * error;
    });
    return sum_of(lanes);
  }
};

// A fit that divides by zero, or turns a range around, is none.
inline bool better(const Fit& fit, float gain) {
  return std::isfinite(fit.scale) && std::isfinite(fit.zero) && fit.gain > gain;
}

inline Fit search_symmetric(const Group& group, float largest) {
  Fit best = {0, 0, 0};
  for (int step = 0; step < kSteps; ++step) {
    const float level = kFirstLevel - kNextLevel * static_cast<float>(step);
    const Fit fit = group.fit(-largest / level, 0, false);
    if (better(fit, best.gain)) best = fit;
  }
  return best;
}

inline Fit search_range(const Group& group, float low, float range) {
  Fit best = {0, 0, 0};
  for (int step = 0; step < kSteps; ++step) {
    const float scale = range / 15 * (kWidest - kNarrower * static_cast<float>(step));
    for (float shift : kShifts) {
      const float minimum = low + (0.5f * (range - 15 * scale) + shift * scale);
      const Fit fit = group.fit(scale, -minimum / scale - 8, true);
      if (fit.scale > 0 && better(fit, best.gain)) best = fit;
    }
  }
  return best;
}

// The best scale that was found, before it is rounded to its stored type, and the zero that is
// stored: whole, in eighths, or 0. A scale of 0: none was found.
inline Fit search_group(const Group& group, float low, float high, SearchedZero kind) {
  const bool free = kind != SearchedZero::kNone;
  const float largest = high >= -low ? high : low;
  Fit best = {0, 0, 0};
  if (!free) {
    best = search_symmetric(group, largest);
  } else if (high - low > kNarrow * std::fabs(largest)) {
    best = search_range(group, low, high - low);
  }
  if (best.scale == 0) return best;
  for (int i = 0; i < kRefinements; ++i) {
    const Fit next = group.fit(best.scale, best.zero, free);
    if (!better(next, best.gain)) break;
    best = next;
  }
  if (!free) return best;
  if (kind == SearchedZero::kWhole) {
    best.zero = std::min(std::max(round_even(best.zero), -128.0f), 119.0f);
  } else {
    best.zero = std::min(std::max(round_even(8 * best.zero), -127.0f), 127.0f) * 0.125f;
  }
  const Fit last = group.fit(best.scale, best.zero, false);
  return better(last, 0) ? last : Fit{0, 0, 0};
}

}  // namespace
}  // namespace ncl
