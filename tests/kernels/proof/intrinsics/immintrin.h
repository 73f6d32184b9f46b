// Stands before the compiler's <immintrin.h>: AVX2, which every tested CPU has, stays the
// compiler's own. What is above it becomes SIMDe's plain functions of the same names, and where
// SIMDe has no such function, the models beside this file. Compile with -mavx2 -mfma -mf16c and
// nothing above.
#pragma once

#if defined(__AVX512F__) || defined(__AVXVNNI__) || defined(__AMX_TILE__)
#error "the proof is about machines without these instructions: leave their flags out"
#endif

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include "missing_in_simde.h"
#include "tile_model.h"
