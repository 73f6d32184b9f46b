// Memory bandwidth, measured by reading as a product reads weights.
#pragma once

#include <cstddef>
#include <vector>

namespace ncl {

// Reads `bytes` of memory `passes` times with all threads; the bandwidth of each pass in bytes/s.
std::vector<double> measure_bandwidth(size_t bytes, int passes);

}  // namespace ncl
