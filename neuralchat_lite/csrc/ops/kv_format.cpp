#include "ops/kv_format.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "kernels/scalar.h"

namespace ncl {
namespace {

template <KVType type, class Element, Element (*convert)(float)>
constexpr KVFormat plain(const char* name) {
  return {
      .name = name,
      .type = type,
      .write_key =
          [](const float* key, int dim, int slot, uint8_t* head) {
            auto* keys = reinterpret_cast<Element*>(head + head_layout(type, dim).keys);
            keys += key_index(slot, dim);
            for (int i = 0; i < dim; ++i) keys[i * kKeyBlock] = convert(key[i]);
          },
      .write_value =
          [](const float* value, int dim, int slot, uint8_t* head) {
            auto* values = reinterpret_cast<Element*>(head + head_layout(type, dim).values);
            values += value_index(slot, dim);
            for (int i = 0; i < dim; ++i) values[i] = convert(value[i]);
          },
  };
}

float unchanged(float value) { return value; }

// The scale of a key or a value in int8, as bf16: its largest element is 127 times it, but for the
// rounding of bf16. NaN when an element is not finite, which then reaches everything that sees it.
uint16_t int8_scale(const float* x, int dim) {
  float largest = 0;
  bool finite = true;
  for (int i = 0; i < dim; ++i) {
    finite &= std::isfinite(x[i]);
    largest = std::max(largest, std::fabs(x[i]));
  }
  return float_to_bf16(finite ? largest / 127 : std::numeric_limits<float>::quiet_NaN());
}

// Calls put(i, integer) for each element: x divided by the scale, to the nearest.
template <class Put>
void quantize(const float* x, int dim, uint16_t scale, Put&& put) {
  const float step = bf16_to_float(scale);
  const float inverse = 1 / step;  // none for 0, NaN, and subnormals, which are worth 0
  const bool usable = std::isfinite(inverse);
  for (int i = 0; i < dim; ++i) {
    const float nearest = usable ? std::nearbyint(x[i] * inverse) : 0;
    put(i, static_cast<int8_t>(std::clamp(nearest, -127.0f, 127.0f)));
  }
}

void write_int8_key(const float* key, int dim, int slot, uint8_t* head) {
  const HeadLayout at = head_layout(KVType::kInt8, dim);
  const uint16_t scale = int8_scale(key, dim);
  auto* keys = reinterpret_cast<int8_t*>(head + at.keys) + key_index(slot, dim);
  quantize(key, dim, scale, [&](int i, int8_t value) { keys[i * kKeyBlock] = value; });
  reinterpret_cast<uint16_t*>(head + at.key_scales)[slot] = scale;
}

void write_int8_value(const float* value, int dim, int slot, uint8_t* head) {
  const HeadLayout at = head_layout(KVType::kInt8, dim);
  const uint16_t scale = int8_scale(value, dim);
  auto* values = reinterpret_cast<int8_t*>(head + at.values) + value_index(slot, dim);
  quantize(value, dim, scale, [&](int i, int8_t element) { values[i] = element; });
  reinterpret_cast<uint16_t*>(head + at.value_scales)[slot] = scale;
}

constexpr KVFormat kFormats[] = {
    plain<KVType::kFp32, float, unchanged>("fp32"),
    plain<KVType::kBf16, uint16_t, float_to_bf16>("bf16"),
    {"int8", KVType::kInt8, write_int8_key, write_int8_value},
};

}  // namespace

const KVFormat& kv_format(const std::string& name) {
  for (const KVFormat& format : kFormats) {
    if (name == format.name) return format;
  }
  throw std::out_of_range("no format of keys and values is called " + name);
}

}  // namespace ncl
