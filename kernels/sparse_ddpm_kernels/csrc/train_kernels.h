// Kernels of training, one table for each instruction set: no inline functions here, because this
// header is compiled for several of them and the linker keeps only one copy of each.
#pragma once

#include "train.h"

namespace sdt {

struct Kernels {
  int32_t vector;  // floats
  int64_t (*scratch)(const sdt_op &, int64_t lanes);
  void (*run)(const sdt_job &job, float *workspace);
};

extern const Kernels baseline_kernels, avx2_kernels, avx512_kernels, neon_kernels;

}  // namespace sdt
