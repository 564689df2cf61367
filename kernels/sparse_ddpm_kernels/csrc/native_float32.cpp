// The library without Python stores activations as float32: of the tables of kernels for 16 bits,
// which are most of the engine's code, it has empty ones, and never asks for them.
#include "operation.h"

namespace sdk {

#if defined(SDK_NEON_KERNELS)
const Kernels neon_half_kernels = {};
#elif defined(SDK_X86_KERNELS)
const Kernels avx2_half_kernels = {}, avx512_half_kernels = {}, avx512_dot_kernels = {};
#endif

}  // namespace sdk
