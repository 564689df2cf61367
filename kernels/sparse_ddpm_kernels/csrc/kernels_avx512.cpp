#define SDK_KERNELS avx512_kernels
#include "kernels.inc"
