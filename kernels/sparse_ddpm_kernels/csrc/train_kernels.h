// Kernels of training, one table for each instruction set: no inline functions here, because this
// header is compiled for several of them and the linker keeps only one copy of each.
#pragma once

#include "train.h"

namespace sdt {

struct Kernels {
  int32_t vector;  // floats
  int64_t (*scratch)(const sdt_op &, int64_t lanes);
  // All operations of one job; the scratch lies in the workspace.
  void (*run)(const sdt_op *op, int64_t ops, int64_t lanes, const sdt_job &job, float *workspace,
              int64_t scratch);
};

extern const Kernels baseline_kernels, avx2_kernels, avx512_kernels, neon_kernels;

}  // namespace sdt
