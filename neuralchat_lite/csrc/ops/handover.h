// What a parallel loop costs beside its work.
#pragma once

#include <vector>

namespace ncl {

// Seconds for each of `loops` loops of the pool, one item for each thread and nothing to do.
std::vector<double> measure_handover(int loops);

}  // namespace ncl
