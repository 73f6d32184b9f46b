// What this CPU can do, and which set of kernels therefore runs.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace ncl {

// Names of the features that matter here, as /proc/cpuinfo spells them, if the CPU has them and
// the operating system saves their registers.
std::vector<std::string> cpu_features();

struct InstructionSet {
  const char* name;
  const Kernels* kernels;  // null: not in this build
  std::vector<const char*> requires_features;
};

// From the best to `generic`, which always runs.
const std::vector<InstructionSet>& instruction_sets();

// Why `set` cannot run here, or an empty string.
std::string why_not(const InstructionSet& set);

}  // namespace ncl
