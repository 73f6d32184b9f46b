#include "ops/kv_format.h"

#include <stdexcept>

#include "kernels/scalar.h"

namespace ncl {
namespace {

template <class Element, Element (*convert)(float)>
constexpr KVFormat plain(const char* name, KVType type) {
  return {
      .name = name,
      .type = type,
      .position_bytes = [](int dim) { return dim * sizeof(Element); },
      .write_key =
          [](const float* key, int dim, int slot, void* keys) {
            Element* to = static_cast<Element*>(keys) + key_index(slot, dim);
            for (int i = 0; i < dim; ++i) to[i * kKeyBlock] = convert(key[i]);
          },
      .write_value =
          [](const float* value, int dim, int slot, void* values) {
            Element* to = static_cast<Element*>(values) + value_index(slot, dim);
            for (int i = 0; i < dim; ++i) to[i] = convert(value[i]);
          },
  };
}

float unchanged(float value) { return value; }

constexpr KVFormat kFormats[] = {
    plain<float, unchanged>("fp32", KVType::kFp32),
    plain<uint16_t, float_to_bf16>("bf16", KVType::kBf16),
};

}  // namespace

const KVFormat& kv_format(const std::string& name) {
  for (const KVFormat& format : kFormats) {
    if (name == format.name) return format;
  }
  throw std::out_of_range("no format of keys and values is called " + name);
}

}  // namespace ncl
