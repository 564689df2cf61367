#define SDK_STORE_HALF
#define SDK_DOT
#define SDK_KERNELS avx512_dot_kernels
#include "kernels.inc"
