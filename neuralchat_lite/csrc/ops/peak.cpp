#include "ops/peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "ops/runtime.h"

namespace ncl {
namespace {

using Clock = std::chrono::steady_clock;

struct Turn {
  Clock::time_point begin, end;
  uint64_t operations;
};

// One turn of each thread; they begin together.
std::vector<Turn> take_turns(Runtime& rt, const Instruction& instruction, uint64_t times) {
  const int threads = rt.pool().threads();
  std::vector<Turn> turns(threads);
  std::atomic<int> waiting{threads};
  rt.run(threads, 0, [&](int item, Scratch) {
    --waiting;
    while (waiting.load() > 0) std::this_thread::yield();
    turns[item].begin = Clock::now();
    turns[item].operations = instruction.run(times);
    turns[item].end = Clock::now();
  });
  return turns;
}

}  // namespace

const Instruction& instruction(WeightType weights, ComputeType compute) {
  Runtime& rt = runtime();
  const std::lock_guard lock(rt.turn);
  return rt.kernels->instruction(weights, compute);
}

double measure_peak(const Instruction& instruction, double seconds) {
  Runtime& rt = runtime();
  const std::lock_guard lock(rt.turn);
  for (uint64_t times = 1 << 14;; times *= 2) {
    const std::vector<Turn> turns = take_turns(rt, instruction, times);
    Turn all = turns[0];
    for (size_t i = 1; i < turns.size(); ++i) {
      all.begin = std::min(all.begin, turns[i].begin);
      all.end = std::max(all.end, turns[i].end);
      all.operations += turns[i].operations;
    }
    const std::chrono::duration<double> time = all.end - all.begin;
    // The first turns also wake threads up and bring the clock up; half of the time is the last's.
    if (2 * time.count() >= seconds) return static_cast<double>(all.operations) / time.count();
  }
}

}  // namespace ncl
