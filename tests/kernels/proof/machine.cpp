// Why a feature cannot be used on a machine that is described:
//
//   machine FEATURE CPUID SAVED ERROR
//
// CPUID: 1 if the processor has every feature, 0 if none. SAVED: XCR0. ERROR: the kernel's answer
// to a request for tiles, or -1 if it must not be asked.
#include <cstdio>
#include <cstdlib>

#include "runtime/cpu.h"

namespace {
bool has;
uint64_t saved;
int error;
}  // namespace

int main(int count, char** words) {
  if (count != 5) return 2;
  has = std::atoi(words[2]);
  saved = std::strtoull(words[3], nullptr, 16);
  error = std::atoi(words[4]);
  const ncl::Machine machine = {[](unsigned, unsigned, unsigned registers[4]) {
                                  for (int i = 0; i < 4; ++i) registers[i] = has ? ~0u : 0;
                                  return true;
                                },
                                [] { return saved; },
                                [] {
                                  if (error < 0) std::abort();
                                  return error;
                                }};
  std::puts(ncl::why_lacking(words[1], machine).c_str());
}
