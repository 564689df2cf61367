#define SDK_STORE_HALF
#define SDK_KERNELS neon_half_kernels
#include "kernels.inc"
