#include "runtime/cpu.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// A row for each instruction set, the best first: its folder in kernels/, and the CPU features that
// it needs.
#define INSTRUCTION_SETS(ROW)                                                                   \
  ROW(amx, "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "amx_tile", "amx_int8") \
  ROW(avx512_vnni, "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni")                 \
  ROW(avx_vnni, "avx2", "fma", "f16c", "avx_vnni")                                              \
  ROW(avx2, "avx2", "fma", "f16c")                                                              \
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

bool cpuid(unsigned leaf, unsigned subleaf, unsigned r[4]) {
  return __get_cpuid_count(leaf, subleaf, &r[0], &r[1], &r[2], &r[3]);
}

uint64_t saved_registers() {
  unsigned r[4];
  if (!__get_cpuid(1, &r[0], &r[1], &r[2], &r[3]) || !(r[2] >> 27 & 1)) return 0;  // no XGETBV
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux gives the 8 kB of tile registers to processes that ask for them, and to their threads and
// forks: Documentation/arch/x86/xstate.rst.
int request_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  static const int answer = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 0 : errno;
  return answer;
#else
  return ENOSYS;
#endif
}

}  // namespace

const Machine& this_machine() {
  static const Machine machine = {cpuid, saved_registers, request_tiles};
  return machine;
}

std::string why_lacking(const std::string& feature, const Machine& machine) {
  const auto* f = std::find_if(std::begin(kFeatures), std::end(kFeatures),
                               [&](const Feature& known) { return feature == known.name; });
  unsigned r[4] = {};
  if (f == std::end(kFeatures) || !machine.cpuid(f->leaf, f->subleaf, r) ||
      !(r[f->reg] >> f->bit & 1)) {
    return "this CPU lacks " + feature;
  }
  if ((machine.saved_registers() & f->saved) != f->saved) {
    return "the operating system does not save the registers of " + feature;
  }
  if (f->saved == kTiles) {
    const int error = machine.request_tiles();
    if (error) {
      return "the kernel refused the registers of " + feature +
             " to this process (arch_prctl: " + std::strerror(error) + ")";
    }
  }
  return "";
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> names;
  for (const Feature& f : kFeatures) {
    if (why_lacking(f.name).empty()) names.emplace_back(f.name);
  }
  return names;
}
#else
const Machine& this_machine() {
  static const Machine machine = {};
  return machine;
}

std::string why_lacking(const std::string& feature, const Machine&) {
  return "this CPU lacks " + feature;
}

std::vector<std::string> cpu_features() { return {}; }
#endif

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = {INSTRUCTION_SETS(TABLE_ROW)};
  return sets;
}

std::string why_not(const InstructionSet& set) {
  if (!set.kernels) return "not in this build";
  for (const char* feature : set.requires_features) {
    const std::string why = why_lacking(feature);
    if (!why.empty()) return why;
  }
  return "";
}

}  // namespace ncl
