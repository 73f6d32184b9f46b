// Runs compiled AMX kernels on a CPU without AMX: linked into the driver, it catches the trap of
// each tile instruction, decodes it, and lets the model of intrinsics/tile_model.h do its work. So
// the machine code itself is proved: its registers, addresses and the order of its memory accesses.
//
// Encodings: Intel's Software Developer's Manual, volume 2, "VEX.128.[pp].0F38.W0 [opcode]".

#include <signal.h>
#include <ucontext.h>

#include "intrinsics/tile_model.h"

namespace {

using namespace proof;

enum Prefix { kNone = 0, k66 = 1, kF3 = 2, kF2 = 3 };

struct Instruction {
  int prefix, opcode;
  int reg, rm, vvvv;  // numbers of registers
  bool has_memory;    // rm is none
  char* address;      // of the memory, less the index
  long index;         // of the SIB byte, which is the stride of a tile
  int length;         // in bytes
};

long general_register(const ucontext_t& context, int number) {
  static const int kPlaces[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};
  return context.uc_mcontext.gregs[kPlaces[number]];
}

template <class T>
long take(const uint8_t*& code) {
  T value;
  std::memcpy(&value, code, sizeof value);
  code += sizeof value;
  return value;
}

Instruction decode(const ucontext_t& context) {
  const auto* const begin = reinterpret_cast<const uint8_t*>(context.uc_mcontext.gregs[REG_RIP]);
  const uint8_t* code = begin;
  require(code[0] == 0xc4 && (code[1] & 0x1f) == 2 && (code[2] & 0x84) == 0, "trap",
          "this is no tile instruction: does the CPU have the rest of the set?");
  const int r = ~code[1] >> 7 & 1, x = ~code[1] >> 6 & 1, b = ~code[1] >> 5 & 1;
  Instruction i{};
  i.vvvv = ~code[2] >> 3 & 15;
  i.prefix = code[2] & 3;
  i.opcode = code[3];
  const int mode = code[4] >> 6;
  i.reg = (code[4] >> 3 & 7) + 8 * r;
  const int rm = code[4] & 7;
  code += 5;
  i.has_memory = mode != 3;
  i.rm = rm + 8 * b;
  if (i.has_memory) {
    long base = 0;
    bool relative = false;
    if (rm == 4) {
      const int sib = *code++;
      const int index = (sib >> 3 & 7) + 8 * x;
      if (index != 4) i.index = general_register(context, index) << (sib >> 6);
      if ((sib & 7) == 5 && mode == 0) {
        base = take<int32_t>(code);
      } else {
        base = general_register(context, (sib & 7) + 8 * b);
      }
    } else if (rm == 5 && mode == 0) {
      relative = true;
      base = take<int32_t>(code);
    } else {
      base = general_register(context, rm + 8 * b);
    }
    if (mode == 1) base += take<int8_t>(code);
    if (mode == 2) base += take<int32_t>(code);
    if (relative) base += reinterpret_cast<intptr_t>(code);
    i.address = reinterpret_cast<char*>(base);
  }
  i.length = static_cast<int>(code - begin);
  return i;
}

void run(const Instruction& i) {
  if (i.opcode == 0x49 && i.has_memory && i.prefix == kNone) return load_config(i.address);
  if (i.opcode == 0x49 && !i.has_memory && i.prefix == kNone) {
    tiles = TileState{};
    return;
  }
  if (i.opcode == 0x49 && i.prefix == kF2) return zero_tile(i.reg);
  if (i.opcode == 0x4b && i.prefix == kF3) return store_tile(i.reg, i.address, i.index);
  if (i.opcode == 0x4b) return load_tile(i.reg, i.address, i.index);
  require(i.opcode == 0x5e && !i.has_memory, "trap", "this instruction has no model");
  switch (i.prefix) {
    case kF2:
      return multiply_tiles<int8_t, int8_t>("tdpbssd", i.reg, i.rm, i.vvvv);
    case kF3:
      return multiply_tiles<int8_t, uint8_t>("tdpbsud", i.reg, i.rm, i.vvvv);
    case k66:
      return multiply_tiles<uint8_t, int8_t>("tdpbusd", i.reg, i.rm, i.vvvv);
    default:
      return multiply_tiles<uint8_t, uint8_t>("tdpbuud", i.reg, i.rm, i.vvvv);
  }
}

void on_trap(int, siginfo_t*, void* context_pointer) {
  auto& context = *static_cast<ucontext_t*>(context_pointer);
  const Instruction instruction = decode(context);
  run(instruction);
  context.uc_mcontext.gregs[REG_RIP] += instruction.length;
}

[[gnu::constructor]] void catch_traps() {
  struct sigaction action = {};
  action.sa_sigaction = on_trap;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace
