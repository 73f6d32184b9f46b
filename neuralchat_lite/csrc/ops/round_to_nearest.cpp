#include "ops/round_to_nearest.h"

#include <atomic>

#include "ops/runtime.h"

namespace ncl {

bool round_to_nearest(const Rounding& op) {
  Runtime& rt = runtime();
  const std::lock_guard lock(rt.turn);
  const Kernels& kernels = *rt.kernels;
  std::atomic<bool> done{true};
  rt.run((op.rows + kRowTile - 1) / kRowTile, kernels.scratch.round_tile(op),
         [&](int tile, Scratch scratch) {
           if (done && !kernels.round_tile(op, tile, scratch)) done = false;
         });
  return done;
}

}  // namespace ncl
