// Checks of a plan: no number in it can lead the kernels out of its memory.
#pragma once

#include "native_file.h"

namespace sdk {

// Counts of the arrays of an operation or a block, which the structs of the engine do not hold.
struct WeightCounts {
  int64_t panel_ptr, offset, value, slot, bias;
};
struct OperationCounts {
  int64_t a, b, panel_ptr, offset, value, slot;
};
struct BlockCounts {
  WeightCounts q, k, v, out;
  int64_t head;
};

// Also sets the plan's estimates. Throws ModelError.
void check_plan(Plan &plan, const std::vector<OperationCounts> &operations,
                const std::vector<BlockCounts> &blocks, const Model &model, const Limits &limits);

}  // namespace sdk
