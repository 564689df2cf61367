// How a convolution is cut: the image into register tiles, the panels into blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "operation.h"

namespace sdk {

struct Tiling {
  std::vector<Tile> tiles;
  std::vector<int64_t> block;  // first panel of each block, then the number of panels
  bool flat = false;
  int64_t flat_floats = 0;
  int64_t span = 1;     // tiles of a unit
  int64_t vectors = 0;  // of the image, unless flat
  int64_t widest = 0;   // vectors of the largest tile
  int64_t x_row = 0;    // floats from one row of what the tiles read to the next
  std::vector<TapRows> tap_rows;  // of each span, if there are copies

  int64_t spans() const;
};

// Shifted copies of a convolution's input: `keep` is empty where the image cannot be moved in whole
// vectors.
struct Copies {
  std::vector<Copy> copy;
  std::vector<Shift> shift;
  std::vector<int32_t> keep;
  int64_t period = 0;
  int64_t floats = 0;           // from one copy to the next
  int64_t doubled = 0;          // floats of rows that are upsampled before
  std::vector<int32_t> offset;  // of each entry
};

// Throws std::invalid_argument where offsets do not fit.
Copies make_copies(const sdk_op &op, const Tiling &tiling, int64_t lanes, int64_t vector);

// A unit of work is a span of tiles through one block (all tiles, when flat). Neither the cut nor the
// number of threads changes what is summed in an output, or in which order, beyond the few
// partial sums of very small tiles.
Tiling make_tiling(const sdk_op &op, int64_t lanes, int threads, const Kernels &kernels);

}  // namespace sdk
