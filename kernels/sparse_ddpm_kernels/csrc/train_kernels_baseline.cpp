#define SDT_KERNELS baseline_kernels
#include "train_kernels.inc"
