#include "runtime/cpu.h"

#include <algorithm>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

// A row for each instruction set, the best first: its folder in kernels/, and the CPU features that
// it needs.
#define INSTRUCTION_SETS(ROW)                                                   \
  ROW(avx512_vnni, "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni") \
  ROW(avx_vnni, "avx2", "fma", "f16c", "avx_vnni")                              \
  ROW(avx2, "avx2", "fma", "f16c")                                              \
  ROW(generic)

// Each folder defines `kernels` in its namespace. The reference is weak: a set that CMakeLists.txt
// leaves out on this architecture is null.
#define DECLARE_KERNELS(set, ...)             \
  namespace ncl::set {                        \
  [[gnu::weak]] extern const Kernels kernels; \
  }
#define TABLE_ROW(set, ...) {#set, &set::kernels, {__VA_ARGS__}},

INSTRUCTION_SETS(DECLARE_KERNELS)

namespace ncl {

#if defined(__x86_64__)
namespace {

struct Feature {
  const char* name;
  unsigned leaf, subleaf;
  int reg;  // 0 eax, 1 ebx, 2 ecx, 3 edx
  int bit;
  uint64_t saved;  // bits of XCR0 that the operating system must have set
};

constexpr uint64_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;

// Intel SDM volume 2, CPUID.
constexpr Feature kFeatures[] = {
    {"avx", 1, 0, 2, 28, kYmm},         {"f16c", 1, 0, 2, 29, kYmm},
    {"fma", 1, 0, 2, 12, kYmm},         {"avx2", 7, 0, 1, 5, kYmm},
    {"avx_vnni", 7, 1, 0, 4, kYmm},     {"avx512f", 7, 0, 1, 16, kZmm},
    {"avx512bw", 7, 0, 1, 30, kZmm},    {"avx512vl", 7, 0, 1, 31, kZmm},
    {"avx512_vnni", 7, 0, 2, 11, kZmm}, {"avx512_bf16", 7, 1, 0, 5, kZmm},
    {"amx_tile", 7, 0, 3, 24, kTiles},  {"amx_int8", 7, 0, 3, 25, kTiles},
    {"amx_bf16", 7, 0, 3, 22, kTiles},
};

uint64_t saved_registers() {
  unsigned r[4];
  if (!__get_cpuid(1, &r[0], &r[1], &r[2], &r[3]) || !(r[2] >> 27 & 1)) return 0;  // no XGETBV
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

}  // namespace

std::vector<std::string> cpu_features() {
  const uint64_t saved = saved_registers();
  std::vector<std::string> names;
  for (const Feature& f : kFeatures) {
    unsigned r[4] = {};
    if (__get_cpuid_count(f.leaf, f.subleaf, &r[0], &r[1], &r[2], &r[3]) &&
        (r[f.reg] >> f.bit & 1) && (saved & f.saved) == f.saved) {
      names.emplace_back(f.name);
    }
  }
  return names;
}
#else
std::vector<std::string> cpu_features() { return {}; }
#endif

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = {INSTRUCTION_SETS(TABLE_ROW)};
  return sets;
}

std::string why_not(const InstructionSet& set) {
  if (!set.kernels) return "not in this build";
  const auto has = cpu_features();
  for (const char* feature : set.requires_features) {
    if (std::find(has.begin(), has.end(), feature) == has.end()) {
      return std::string("this CPU lacks ") + feature;
    }
  }
  return "";
}

}  // namespace ncl
