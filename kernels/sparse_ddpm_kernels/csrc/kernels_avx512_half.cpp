#define SDK_STORE_HALF
#define SDK_KERNELS avx512_half_kernels
#include "kernels.inc"
