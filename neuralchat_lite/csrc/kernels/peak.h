// What the loops of every set's peak.cpp share: an instruction, over and over, in registers.
#pragma once

#include <cstdint>

namespace ncl {
namespace {

// Sums of 32 bits in a register of `bytes` bytes. A sum that is cast at each step, and not __m256i
// or __m512i all along: gcc 12 then moves it between two registers at each step.
template <int bytes>
using Words [[gnu::vector_size(bytes)]] = int32_t;

// Calls step(sum) `times` times or a little more, on kSums sums in turn, so that no step waits for
// the one before. Returns `operations` for each step. A step must use the sum in all that it
// computes, or the compiler computes it once.
template <int kSums, class Sum, class Step>
[[maybe_unused]] inline uint64_t run_in_registers(uint64_t times, uint64_t operations,
                                                  Step&& step) {
  Sum sums[kSums];
  for (int i = 0; i < kSums; ++i) {
    Sum sum{};
    asm volatile("" : "+m"(sum));  // for all that the compiler knows, each sum is another one
    sums[i] = sum;
  }
  const uint64_t loops = (times + kSums - 1) / kSums;
  for (uint64_t loop = 0; loop < loops; ++loop) {
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) step(sums[i]);
  }
  Sum results[kSums];  // a copy, as what has an address is not kept in registers
  for (int i = 0; i < kSums; ++i) results[i] = sums[i];
  asm volatile("" : : "m"(results));
  return loops * kSums * operations;
}

}  // namespace
}  // namespace ncl
