#define SDK_KERNELS avx2_kernels
#include "kernels.inc"
