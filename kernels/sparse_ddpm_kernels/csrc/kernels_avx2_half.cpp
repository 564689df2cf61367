#define SDK_STORE_HALF
#define SDK_KERNELS avx2_half_kernels
#include "kernels.inc"
