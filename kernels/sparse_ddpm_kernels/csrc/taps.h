// Shifted copies of a convolution's input, so that every tap of a row begins at a whole vector.
#pragma once

#include "move.h"

namespace {

SDK_INLINE void fill_zeros(Real *to, int64_t length) {
  int64_t i = 0;
  for (; i + kVector <= length; i += kVector) store(to + i, Vec{});
  for (; i < length; ++i) to[i] = Real{};
}

// One row of n floats, shifted by d of them.
SDK_INLINE void shifted_row(Real *to, const Real *from, int64_t n, int64_t d) {
  const int64_t lost = d < 0 ? -d : d, kept = n > lost ? n - lost : 0;
  if (d < 0) fill_zeros(to, n - kept);
  copy_row(to + (d < 0 ? n - kept : 0), from + (d < 0 ? 0 : d), kept);
  if (d > 0) fill_zeros(to + kept, n - kept);
}

// `length` floats of an image whose floats lie side by side, but zeros where `keep` is 0: the bits to
// keep of `period` floats, whole vectors, over and over.
SDK_INLINE Vec masked(const Real *x, const float *keep) {
  return (Vec)((IntVec)load(x) & (IntVec)load(keep));
}

template <int Vectors>
SDK_INLINE void masked_periods(Real *to, const Real *from, int64_t length, const float *keep) {
  constexpr int64_t kPeriod = Vectors * kVector;
  int64_t i = 0;
  for (; i + kPeriod <= length; i += kPeriod)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v)
      store(to + i + v * kVector, masked(from + i + v * kVector, keep + v * kVector));
  for (; i < length; i += kVector) {
    const Vec v = masked(from + i, keep + i % kPeriod);
    store(to + i, v, length - i < kVector ? length - i : kVector);
  }
}

SDK_INLINE void masked_image(Real *to, const Real *from, int64_t length, const float *keep,
                             int64_t period) {
  if (period == kVector) return masked_periods<1>(to, from, length, keep);
  if (period == 2 * kVector) return masked_periods<2>(to, from, length, keep);
  if (period == 4 * kVector) return masked_periods<4>(to, from, length, keep);
  for (int64_t i = 0, k = 0; i < length; i += kVector, k = k + kVector < period ? k + kVector : 0)
    store(to + i, masked(from + i, keep + k), length - i < kVector ? length - i : kVector);
}

// An image as rows to take pixels from.
struct Source {
  const Real *first;  // pixel of row 0
  int64_t row_stride;
};

// Rows `first` to `last` of a copy that takes its pixels row by row.
SDK_INLINE void copy_rows(const Operation &op, const Source &from, const sdk::Shift &shift,
                          int64_t first, int64_t last, Real *to) {
  const int64_t row = op.taps.row;
  for (int64_t h = first; h < last; ++h, to += row) {
    const int64_t source = h + shift.rows;
    if (source < 0 || source >= op.taps.height) {
      fill_zeros(to, row);
    } else {
      shifted_row(to, from.first + source * from.row_stride, row, shift.columns * op.step->lanes);
    }
  }
}

// Rows `first` to `last` of twice the width and height of a channel of x.
SDK_INLINE Source doubled_rows(const Operation &op, const Real *x, int64_t first, int64_t last,
                               Real *to) {
  const int64_t row = op.taps.row, lanes = op.step->lanes;
  for (int64_t h = first / 2; h < (last + 1) / 2; ++h) {
    Real *even = to + (2 * h - first) * row;
    if (2 * h < first) even += row;  // the odd row alone is wanted
    double_pixels(even, x + h * op.is.x.row_stride, row / (2 * lanes), lanes);
    if (2 * h >= first && 2 * h + 1 < last) copy_row(even + row, even, row);
  }
  return {to - first * row, row};
}

// What the tiles of one span read; rows outside the image are zeros. `doubled`: scratch for rows of
// x upsampled.
void make_taps(const Operation &op, const sdk::TapRows &rows, Real *to, Real *doubled) {
  const sdk::Taps &taps = op.taps;
  const int64_t row = taps.row, period = taps.keep_period;
  const float *keep = reinterpret_cast<const float *>(taps.keep);
  const Real *x = arena_of(op) + op.is.x.offset;
  const int64_t first = rows.first < 0 ? 0 : rows.first;
  const int64_t last = rows.last < taps.height ? rows.last : taps.height;
  const int64_t above = (first - rows.first) * row, below = (rows.last - last) * row;
  const int64_t length = (last - first) * row;
  if (keep != nullptr && taps.doubled == 0 && above + below == 0 && length == kVector) {
    // Copied from where a store might change them, as far as the compiler knows.
    const sdk::Copy *next = taps.copy, *end = next + taps.count;
    const int64_t channel_stride = op.is.x.channel_stride, floats = taps.floats;
    const sdk::Shift *shift = taps.shift;
    for (; next < end; ++next, to += floats)
      store(to, masked(x + next->channel * channel_stride + shift[next->shift].floats,
                       keep + next->shift * kVector));
    return;
  }
  int64_t channel = -1;
  Source from = {};
  for (int64_t i = 0; i < taps.count; ++i, to += taps.floats) {
    const sdk::Copy copy = taps.copy[i];
    const sdk::Shift &shift = taps.shift[copy.shift];
    if (copy.channel != channel) {
      channel = copy.channel;
      const Real *image = x + channel * op.is.x.channel_stride;
      from = taps.doubled > 0 ? doubled_rows(op, image, first, last, doubled)
                              : Source{image, op.is.x.row_stride};
    }
    if (above > 0) fill_zeros(to, above);
    if (keep != nullptr) {
      masked_image(to + above, from.first + first * row + shift.floats, length,
                   keep + copy.shift * period, period);
    } else {
      copy_rows(op, from, shift, first, last, to + above);
    }
    if (below > 0) fill_zeros(to + above + length, below);
  }
}

SDK_INLINE int64_t floats_for(int64_t numbers) {
  return (numbers * (int64_t)sizeof(Real) + 63) / 64 * 16;
}

// Floats of scratch: the copies, up to 15 more that are read, and dropped; the rows upsampled, and
// as many around them.
SDK_INLINE int64_t copies_floats(const Operation &op) {
  return floats_for(op.taps.count * op.taps.floats + 16);
}

int64_t taps_scratch(const Operation &op) {
  if (op.taps.count == 0) return 0;
  return copies_floats(op) + (op.taps.doubled > 0 ? floats_for(16 + op.taps.doubled + 16) : 0);
}

// The copies for a span, made unless this thread has them; where the first pixel of the image would
// lie in the first one.
SDK_INLINE const Real *taps_of(const Operation &op, int64_t span, Scratch &scratch) {
  Real *copies = reinterpret_cast<Real *>(scratch.floats);
  const sdk::TapRows &rows = op.taps.rows[span];
  if (scratch.tapped != &op || scratch.span != span || scratch.pass != op.step->pass) {
    make_taps(op, rows, copies, reinterpret_cast<Real *>(scratch.floats + copies_floats(op)) + 16);
    scratch.tapped = &op;
    scratch.span = span;
    scratch.pass = op.step->pass;
  }
  return copies - rows.first * op.taps.row;
}

}  // namespace
