// Runs the integer products of one instruction set beside their contract, bit for bit:
//
//   driver SET COMPUTE WEIGHTS SCHEME [--unfused]
//
// The contract of a product, on every instruction set, for each output and each block of 32 columns
// in order:
//
//   sum = fma(float(dot) * activation scale, weight scale, sum)
//
// where dot is the exact sum of (code - zero) * integer activation. Affine weights have no zero,
// and after each block follows, with the exact sum of its integer activations,
//
//   sum = fma(float(sum of integers) * activation scale, minimum, sum)
// What is here is written from
// this and from docs/reference/format.md and shares only declarations with the kernels. --unfused
// breaks the contract (the second product is rounded, too), to see that this would be found.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/sixteen_bit_rows.h"
#include "runtime/cpu.h"

namespace {

using namespace ncl;

bool unfused = false;
long checked = 0;

[[noreturn]] void fail(const std::string& what) {
  std::printf("%s\n", what.c_str());
  std::exit(1);
}

// Memory aligned as the library aligns it, between borders that a kernel must not cross.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes), all_(kBorder * 2 + bytes + 64, kMark) {
    const auto address = reinterpret_cast<uintptr_t>(all_.data() + kBorder);
    begin_ = all_.data() + kBorder + (64 - address % 64) % 64;
    std::fill_n(begin_, bytes, static_cast<unsigned char>(0xcd));
  }
  Memory(const Memory&) = delete;
  unsigned char* begin() { return begin_; }
  size_t bytes() const { return bytes_; }
  void check(const char* name) const {
    for (const unsigned char* p = all_.data(); p < all_.data() + all_.size(); ++p) {
      const bool inside = p >= begin_ && p < begin_ + bytes_;
      if (!inside && *p != kMark) fail(std::string("wrote outside of ") + name);
    }
  }

 private:
  static constexpr size_t kBorder = 256;
  static constexpr unsigned char kMark = 0xa5;
  size_t bytes_;
  std::vector<unsigned char> all_;
  unsigned char* begin_;
};

struct Case {
  int rows, cols, group_size;  // of the weights; a group size of -1 is a whole row
  WeightType type;
  FloatType scale_type;
  Scheme scheme;
  bool bias, accumulate;
  ComputeType compute;
  int count;  // rows of activations
  bool spoiled;

  std::string name() const {
    static const char* const kFloats[] = {"fp32", "bf16", "fp16"};
    static const char* const kSchemes[] = {"sym", "asym", "affine", "affine8"};
    char text[200];
    std::snprintf(text, sizeof text,
                  "%d x %d %s, groups of %d, %s, scales in %s, compute %s, %d rows%s", rows, cols,
                  type == WeightType::kInt4 ? "int4" : "int8", group_size,
                  kSchemes[static_cast<int>(scheme)], kFloats[static_cast<int>(scale_type)],
                  compute == ComputeType::kInt8 ? "int8" : "bf16", count,
                  spoiled ? ", some NaN and infinite" : "");
    return text;
  }
};

// A random matrix, packed by the words of docs/reference/format.md, and what it means.
struct Weights {
  std::vector<int> codes;      // [rows][padded cols], minus the zero
  std::vector<float> scales;   // [rows][groups]
  std::vector<float> minima;   // the same
  std::vector<uint8_t> bytes;  // packed
  std::vector<uint8_t> packed_scales;
  std::vector<int8_t> packed_zeros;
  std::vector<uint8_t> packed_minima;
  std::vector<float> bias;
  Matrix matrix;
};

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// A positive float of few bits, exact in every scale type; sometimes zero.
float random_scale(std::mt19937& random) {
  if (random() % 50 == 0) return 0.0f;
  return std::ldexp(static_cast<float>(128 + random() % 128), -15 + static_cast<int>(random() % 3));
}

void put_scale(std::vector<uint8_t>& to, FloatType type, size_t index, float value) {
  if (type == FloatType::kFp32) {
    std::memcpy(to.data() + 4 * index, &value, 4);
  } else if (type == FloatType::kBf16) {
    const uint16_t half = static_cast<uint16_t>(bits_of(value) >> 16);
    std::memcpy(to.data() + 2 * index, &half, 2);
  } else {  // of fp32: 127 is the exponent of 1; of fp16: 15
    const uint32_t bits = bits_of(value);
    const uint16_t half =
        value == 0 ? 0
                   : static_cast<uint16_t>(bits >> 31 << 15 | ((bits >> 23 & 0xff) - 112) << 10 |
                                           (bits >> 13 & 0x3ff));
    std::memcpy(to.data() + 2 * index, &half, 2);
  }
}

std::unique_ptr<Weights> random_weights(const Case& c, std::mt19937& random) {
  auto made = std::make_unique<Weights>();
  const int tiles = (c.rows + 15) / 16, cols = (c.cols + 31) / 32 * 32;
  const int group_size = c.group_size < 0 ? cols : c.group_size;
  const int groups = (cols + group_size - 1) / group_size;
  const bool int4 = c.type == WeightType::kInt4;
  made->codes.resize(static_cast<size_t>(c.rows) * cols);
  made->scales.resize(static_cast<size_t>(c.rows) * groups);
  made->bytes.resize(static_cast<size_t>(tiles) * cols * 16 / (int4 ? 2 : 1));
  made->packed_scales.resize(static_cast<size_t>(tiles) * groups * 16 * 4);
  made->packed_zeros.resize(static_cast<size_t>(tiles) * groups * 16);
  made->minima.resize(static_cast<size_t>(c.rows) * groups);
  made->packed_minima.resize(static_cast<size_t>(tiles) * groups * 16 * 4);
  for (int r = 0; r < c.rows; ++r) {
    std::vector<int> zeros(groups, int4 && !has_minima(c.scheme) ? 8 : 0);
    for (int g = 0; g < groups; ++g) {
      const size_t at = (static_cast<size_t>(r / 16) * groups + g) * 16 + r % 16;
      const float scale = random_scale(random);
      made->scales[static_cast<size_t>(r) * groups + g] = scale;
      put_scale(made->packed_scales, c.scale_type, at, scale);
      if (c.scheme == Scheme::kAffine) {
        const float minimum = -8 * random_scale(random);
        made->minima[static_cast<size_t>(r) * groups + g] = minimum;
        put_scale(made->packed_minima, c.scale_type, at, minimum);
      }
      if (c.scheme == Scheme::kAffine8) {
        const auto byte = static_cast<int8_t>(random() % 256);
        made->packed_minima[at] = static_cast<uint8_t>(byte);
        made->minima[static_cast<size_t>(r) * groups + g] =
            made->scales[static_cast<size_t>(r) * groups + g] * (byte / 8.0f - 8);
      }
      if (c.scheme == Scheme::kAsym) {
        // The format allows every signed byte, also beside codes of 4 bits.
        zeros[g] = int4 && random() % 8 ? static_cast<int>(random() % 16)
                                        : static_cast<int>(random() % 256) - 128;
        made->packed_zeros[at] = static_cast<int8_t>(zeros[g]);
      }
    }
    for (int k = 0; k < cols; ++k) {
      // Whole blocks of the largest code, too: sums must not overflow.
      const bool extreme = (r + k / 32) % 5 == 0;
      int code = int4 ? static_cast<int>(random() % 16) : static_cast<int>(random() % 256) - 128;
      if (extreme) code = int4 ? 15 : r % 2 ? 127 : -128;
      if (k >= c.cols) code = int4 ? 8 : 0;
      made->codes[static_cast<size_t>(r) * cols + k] = code - zeros[k / group_size];
      if (int4) {
        uint8_t& byte = made->bytes[((static_cast<size_t>(r / 16) * cols + k / 8 * 8) / 8) * 64 +
                                    r % 16 * 4 + k % 4];
        byte = static_cast<uint8_t>(byte | code << (k % 8 < 4 ? 0 : 4));
      } else {
        made->bytes[((static_cast<size_t>(r / 16) * cols + k / 4 * 4) / 4) * 64 + r % 16 * 4 +
                    k % 4] = static_cast<uint8_t>(code);
      }
    }
  }
  if (c.bias) {
    made->bias.resize(c.rows);
    for (float& value : made->bias) value = static_cast<float>(random() % 1000) / 64 - 8;
  }
  made->matrix = {.type = c.type,
                  .rows = c.rows,
                  .cols = c.cols,
                  .data = made->bytes.data(),
                  .scales = made->packed_scales.data(),
                  .scale_type = c.scale_type,
                  .zeros = c.scheme == Scheme::kAsym ? made->packed_zeros.data() : nullptr,
                  .minima = has_minima(c.scheme) ? made->packed_minima.data() : nullptr,
                  .blocks_per_group = group_size / 32,
                  .bias = c.bias ? made->bias.data() : nullptr,
                  .byte_minima = c.scheme == Scheme::kAffine8};
  return made;
}

// Normal values, of very different size from block to block; zeros, subnormals, and whole blocks of
// the largest value.
std::vector<float> random_activations(const Case& c, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(c.count) * c.cols);
  for (int r = 0; r < c.count; ++r) {
    for (int k = 0; k < c.cols; ++k) {
      float value = std::ldexp(normal(random), (r * 7 + k / 32 * 5) % 23 - 11);
      if ((r + k / 32) % 11 == 3) value = 0;
      if ((r + k / 32) % 11 == 7) value = 1e-42f;
      if ((r + k / 32) % 11 == 9) value = (r + k) % 13 ? -3.5f : 3.5f;
      x[static_cast<size_t>(r) * c.cols + k] = value;
    }
  }
  if (c.spoiled) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinity = std::numeric_limits<float>::infinity();
    for (int r = 0; r < c.count; r += 3) {
      x[static_cast<size_t>(r) * c.cols + random() % c.cols] = r % 2   ? nan
                                                               : r % 4 ? infinity
                                                                       : -infinity;
    }
  }
  return x;
}

// One row of activations as integers, a scale for each block of 32.
struct Integers {
  std::vector<int> values;
  std::vector<float> scales;
};

Integers quantized(const float* x, int cols, ComputeType compute) {
  const int limit = largest_integer(compute);
  Integers row;
  for (int first = 0; first < cols; first += 32) {
    const int count = std::min(32, cols - first);
    float largest = 0;
    bool finite = true;
    for (int i = 0; i < count; ++i) {
      finite = finite && std::isfinite(x[first + i]);
      largest = std::max(largest, std::fabs(x[first + i]));
    }
    const float inverse = static_cast<float>(limit) / largest;
    const bool usable = finite && largest > 0 && std::isfinite(inverse);
    for (int i = 0; i < 32; ++i) {
      const float scaled = usable && i < count ? x[first + i] * inverse : 0.0f;
      row.values.push_back(std::clamp(static_cast<int>(std::nearbyint(scaled)), -limit, limit));
    }
    row.scales.push_back(finite ? largest / static_cast<float>(limit)
                                : std::numeric_limits<float>::quiet_NaN());
  }
  return row;
}

float contract(const Case& c, const Weights& w, const Integers& x, int output) {
  const int cols = static_cast<int>(x.values.size()), blocks = cols / 32;
  const int per_group = w.matrix.blocks_per_group, groups = (blocks + per_group - 1) / per_group;
  float sum = 0;
  for (int block = 0; block < blocks; ++block) {
    int dot = 0, of_integers = 0;
    for (int k = 32 * block; k < 32 * block + 32; ++k) {
      of_integers += x.values[k];
      dot += w.codes[static_cast<size_t>(output) * cols + k] * x.values[k];
    }
    const float product = static_cast<float>(dot) * x.scales[block];
    const size_t at = static_cast<size_t>(output) * groups + block / per_group;
    sum = unfused ? sum + product * w.scales[at] : std::fma(product, w.scales[at], sum);
    if (has_minima(c.scheme)) {
      sum = std::fma(static_cast<float>(of_integers) * x.scales[block], w.minima[at], sum);
    }
  }
  return c.bias ? sum + w.bias[output] : sum;
}

void check(const Kernels& kernels, const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  const auto weights = random_weights(c, random);
  const std::vector<float> x = random_activations(c, random);

  Memory formatted(kernels.activations.bytes(c.count, c.cols, c.compute));
  const Activations activations{c.count, c.cols, c.compute, formatted.begin()};
  for (int r = c.count - 1; r >= 0; --r) {  // rows are written in any order
    kernels.activations.write_row(x.data() + static_cast<size_t>(r) * c.cols, activations, r);
  }
  formatted.check("the activations");

  // Row tiles in two ranges, as two threads would take them.
  const int stride = c.rows + 3, tiles = weights->matrix.row_tiles(), half = (tiles + 1) / 2;
  constexpr float kBefore = 0.375f;
  Memory out(sizeof(float) * c.count * stride);
  float* results = reinterpret_cast<float*>(out.begin());
  std::fill_n(results, static_cast<size_t>(c.count) * stride, kBefore);
  Memory scratch(scratch_bytes<char>(kernels.scratch.integer_product(c.count, c.cols)));
  for (const auto& [begin, end] : {std::pair{half, tiles}, std::pair{0, half}}) {
    kernels.integer_product(weights->matrix, begin, end, activations,
                            {results, stride, c.accumulate},
                            {scratch.begin(), scratch.begin() + scratch.bytes()});
  }
  scratch.check("the scratch memory");
  out.check("the output");

  for (int r = 0; r < c.count; ++r) {
    const Integers row = quantized(x.data() + static_cast<size_t>(r) * c.cols, c.cols, c.compute);
    for (int i = 0; i < stride; ++i) {
      const float got = results[static_cast<size_t>(r) * stride + i];
      float want = kBefore;
      if (i < c.rows) {
        want = contract(c, *weights, row, i);
        if (c.accumulate) want += kBefore;
      }
      if (bits_of(got) != bits_of(want) && !(std::isnan(got) && std::isnan(want))) {
        char text[200];
        std::snprintf(text, sizeof text, ": row %d, output %d is %.9g (%08x), not %.9g (%08x)", r,
                      i, got, bits_of(got), want, bits_of(want));
        fail(c.name() + text);
      }
      ++checked;
    }
  }
}

}  // namespace

int main(int count, char** words) {
  const std::vector<std::string> given(words + 1, words + count);
  if (given.size() < 4) fail("driver SET COMPUTE WEIGHTS SCHEME [--unfused]");
  unfused = given.size() > 4 && given[4] == "--unfused";
  const Kernels* kernels = nullptr;
  for (const InstructionSet& set : instruction_sets()) {
    if (set.name == given[0]) kernels = set.kernels;
  }
  if (!kernels) fail(given[0] + " is not in this build");
  if (kernels->prepare_thread) kernels->prepare_thread();

  Case c{};
  c.compute = given[1] == "int8" ? ComputeType::kInt8 : ComputeType::kBf16;
  c.type = given[2] == "int8" ? WeightType::kInt8 : WeightType::kInt4;
  c.scheme = given[3] == "asym"      ? Scheme::kAsym
             : given[3] == "affine"  ? Scheme::kAffine
             : given[3] == "affine8" ? Scheme::kAffine8
                                     : Scheme::kSym;
  unsigned seed = 0;
  const auto next = [&] {
    // Each choice meets all the others somewhere.
    c.scale_type = static_cast<FloatType>(seed % 3);
    c.bias = seed % 2;
    c.accumulate = seed / 2 % 2;
    c.spoiled = seed % 5 == 4;
    check(*kernels, c, seed++);
  };
  for (const int group_size : {32, 64, 128, -1}) {
    c.group_size = group_size;
    for (c.count = 1; c.count <= 33; ++c.count) {
      c.rows = 33 - c.count % 3;
      c.cols = 193 - 32 * (c.count % 5) - c.count % 7;
      next();
    }
    for (const auto& [rows, cols] : {std::pair{16, 32}, {1, 1}, {17, 33}, {64, 172}, {50, 1100}}) {
      for (const int rows_of_activations : {1, 2, 7, 16, 40, 70}) {
        c.rows = rows;
        c.cols = cols;
        c.count = rows_of_activations;
        if (rows * cols < 12000 || c.count < 20) next();
      }
    }
  }
  std::printf("%ld values are those of the contract\n", checked);
}
