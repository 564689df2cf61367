#define SDT_KERNELS neon_kernels
#include "train_kernels.inc"
