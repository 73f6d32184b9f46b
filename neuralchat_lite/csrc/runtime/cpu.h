// What this CPU can do, and which set of kernels therefore runs.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace ncl {

// What the processor and the operating system say about themselves.
struct Machine {
  bool (*cpuid)(unsigned leaf, unsigned subleaf, unsigned registers[4]);  // false: no such leaf
  uint64_t (*saved_registers)();  // XCR0: those that survive a switch to another thread
  int (*request_tiles)();         // asks for tile registers for this process: 0 or an error number
};

const Machine& this_machine();

// Why a feature, named as in /proc/cpuinfo, cannot be used: the CPU lacks it, or the operating
// system does not save its registers or refuses them. Empty if it can be used.
std::string why_lacking(const std::string& feature, const Machine& = this_machine());

// Names of the features that matter here and can be used.
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
