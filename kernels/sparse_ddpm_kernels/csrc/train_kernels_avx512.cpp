#define SDT_KERNELS avx512_kernels
#include "train_kernels.inc"
