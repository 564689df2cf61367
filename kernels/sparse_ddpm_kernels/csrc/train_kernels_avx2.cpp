#define SDT_KERNELS avx2_kernels
#include "train_kernels.inc"
