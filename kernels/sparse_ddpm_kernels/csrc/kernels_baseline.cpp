#define SDK_KERNELS baseline_kernels
#include "kernels.inc"
