#include "ops/handover.h"

#include <chrono>

#include "ops/runtime.h"

namespace ncl {

std::vector<double> measure_handover(int loops) {
  using Clock = std::chrono::steady_clock;
  Runtime& rt = runtime();
  const std::lock_guard lock(rt.turn);
  std::vector<double> seconds;
  for (int loop = 0; loop < loops; ++loop) {
    const auto start = Clock::now();
    rt.run(rt.pool().threads(), 0, [](int, Scratch) {});
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  return seconds;
}

}  // namespace ncl
