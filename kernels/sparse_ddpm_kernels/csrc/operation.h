// What the engine prepares once and the kernels read: no inline functions here, because this
// header is compiled for several instruction sets and the linker keeps only one copy of each.
#pragma once

#include <stdint.h>

#include "engine.h"

namespace sdk {

// One register tile of a convolution: rows x vectors of output pixels by G output channels.
struct TileArguments {
  const void *x;  // the tile's first pixel
  int64_t x_row;
  const int64_t *panel_ptr;
  const int32_t *offset;
  const float *value;
  const float *bias;    // by slot
  const int32_t *slot;  // channel of each slot within `out`, -1: none
  int64_t first, last;  // panels
  int32_t group, part;  // channels a panel, and the first of those to compute now
  void *out;
  int64_t out_channel, out_row;
  const void *residual;  // or null
  int64_t residual_channel, residual_row;
  // Or null: of each channel, by lane, the sum and the sum of squares of what is stored less the
  // bias; `fresh`: not to be added to what is there.
  float *moments;
  int64_t moments_channel;
  bool fresh;
};
using TileFunction = void (*)(const TileArguments &);

struct Tile {
  TileFunction run;
  int64_t x, out, residual;  // offsets of the tile's first pixel from the tensors' first pixels
};

// The state of a step that operations see.
struct Step {
  int64_t pass;  // of all passes of all steps
  void *arena;  // floats, or halves
  const float *input;
  float *output;
  const float *row;
  int64_t lanes;
  int64_t images;  // in the lanes; the lanes beyond hold zeros
};

// Where a copy of an image takes its pixels from, relative to where it puts them.
struct Shift {
  int64_t rows, columns, floats;
};

// One copy of one channel; short, as a list of them is read beside every image.
struct Copy {
  int32_t channel, shift;
};

// Rows of the image that the tiles of a span read; they may lie outside.
struct TapRows {
  int64_t first, last;
};

// Shifted copies of a convolution's input. Each thread makes those that the tiles of its present
// span read, in its own scratch: they stay in its cache, and nobody waits for them.
struct Taps {
  const Copy *copy;  // [count], by channel, those that are read
  int64_t count;     // 0: the convolution reads its input itself
  int64_t floats;    // from one copy to the next
  const Shift *shift;
  int64_t height, row;  // of the image, and the floats of a row
  const TapRows *rows;  // [spans]
  // Of each shift, which floats of a period stay in the image; null where pixels are taken row by
  // row.
  const int32_t *keep;
  int64_t keep_period;
  int64_t doubled;  // floats of scratch for rows that are upsampled before; 0: none are
};

struct Operation {
  sdk_op is;  // its pointers lead to the engine's own copies
  const Step *step;
  // Convolution: tiles over the image, blocks of panels of about equal work.
  const Tile *tiles;
  int64_t tile_count, span;  // tiles a unit of work does in a row
  const int64_t *block;  // [blocks + 1] panels
  int64_t blocks;
  bool flat;           // the image is one run over rows and halo, gathered in scratch
  int64_t flat_floats; // of one channel in scratch
  int64_t x_row;       // floats from one row of what it reads to the next
  float *bias;         // by slot
  // Moments that a convolution leaves for the norm after it, [C, spans, 2, vector], or null; the
  // norm knows the number of spans and the bias [C].
  float *moments;
  int64_t moment_spans;
  const float *moment_bias;
  Taps taps;
};

// One thread's: scratch_floats(operation) of every operation, 64-byte aligned, and which copies lie
// there.
struct Scratch {
  float *floats;
  const Operation *tapped;
  int64_t span, pass;
};

// Kernels of one instruction set. A function computes one unit of an operation; units are
// independent of each other.
using Function = void (*)(const Operation &, int64_t unit, Scratch &scratch);

struct Kernels {
  int32_t vector;           // floats
  int32_t max_group;        // larger panels are computed in parts of this many channels
  int32_t dot_group;        // panels of so many channels or more are read in pairs; 0: none are
  int32_t tile_limit[5];    // vectors of pixels a tile may have, for G = 1, 2, 4, 8, 16
  TileFunction (*tile)(int32_t group, int32_t rows, int32_t vectors);
  int64_t (*units)(const Operation &);
  int64_t (*scratch_floats)(const Operation &);
  Function run[SDK_KINDS];
};

extern const Kernels baseline_kernels, avx2_kernels, avx512_kernels, neon_kernels;
// The same on activations that are stored as halves.
extern const Kernels avx2_half_kernels, avx512_half_kernels, neon_half_kernels;
// And the products of large panels in bfloat16.
extern const Kernels avx512_dot_kernels;

}  // namespace sdk
