#define SDK_KERNELS neon_kernels
#include "kernels.inc"
