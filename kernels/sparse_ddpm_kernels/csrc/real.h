// What activations are stored as: the kernels are compiled once for each.
#pragma once

#include "operation.h"
#include "vec.h"

namespace {

using sdk::Operation;
using sdk::Scratch;

#if defined(SDK_STORE_HALF)
typedef Half Real;
#else
typedef float Real;
#endif

SDK_INLINE Real *arena_of(const Operation &op) { return static_cast<Real *>(op.step->arena); }

// SiLU as exact as what it is stored in.
#if defined(SDK_STORE_HALF) && defined(__AVX512F__)
SDK_INLINE Vec stored_silu(Vec x) { return rough_silu(x); }
#else
SDK_INLINE Vec stored_silu(Vec x) { return silu(x); }
#endif

// One number, where there is no vector of them.
SDK_INLINE float number(float x) { return x; }
#if defined(SDK_STORE_HALF)
SDK_INLINE float number(Half x) { return load(&x, 1)[0]; }
#endif

}  // namespace
