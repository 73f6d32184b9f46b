// Multiplying and adding in plain C++: what a compiler makes of it, without memory.

#include "kernels/peak.h"

#include "kernels/generic/generic.h"

namespace ncl::generic {
namespace {

template <class Number>
uint64_t run_scalar(uint64_t times) {
  volatile Number given = 1;
  const Number a = given;
  return run_in_registers<16, Number>(times, 2, [&](Number& sum) { sum = sum * a + a; });
}

constexpr Instruction kIntegers = {"generic", "scalar", run_scalar<uint32_t>};
constexpr Instruction kFloats = {"generic", "scalar", run_scalar<float>};

}  // namespace

const Instruction& instruction(WeightType weights, ComputeType compute) {
  return !is_packed(weights) || compute == ComputeType::kFp32 ? kFloats : kIntegers;
}

}  // namespace ncl::generic
