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

// Images of one vector, whole.
SDK_INLINE void copy_vectors(const Operation &op, Real *to) {
  const sdk::Taps &taps = op.taps;
  const sdk_tensor &x = op.is.x;
  const Real *from = arena_of(op) + x.offset;
  const float *keep = reinterpret_cast<const float *>(taps.keep);
  for (int64_t c = 0; c < x.channels; ++c, from += x.channel_stride)
    for (int64_t s = 0; s < taps.copies; ++s, to += taps.floats)
      store(to, masked(from + taps.shifts[s].floats, keep + s * kVector));
}

// Rows `first` to `last` of copies that take their pixels by rows.
SDK_INLINE void copy_rows(const Operation &op, const Real *from, const sdk::Shift &shift,
                          int64_t first, int64_t last, Real *to) {
  const sdk_tensor &x = op.is.x;
  const int64_t row = op.taps.row;
  for (int64_t h = first; h < last; ++h, to += row) {
    const int64_t source = h + shift.rows;
    if (source < 0 || source >= x.height) {
      fill_zeros(to, row);
    } else {
      shifted_row(to, from + source * x.row_stride, row, shift.columns * op.step->lanes);
    }
  }
}

// What the tiles of one span read. Rows outside the image are zeros.
void make_taps(const Operation &op, const sdk::TapRows &rows, Real *to) {
  const sdk::Taps &taps = op.taps;
  const sdk_tensor &x = op.is.x;
  const int64_t row = taps.row;
  const int64_t first = rows.first < 0 ? 0 : rows.first;
  const int64_t last = rows.last < x.height ? rows.last : x.height;
  const int64_t above = (first - rows.first) * row, below = (rows.last - last) * row;
  const int64_t length = (last - first) * row;
  const float *keep = reinterpret_cast<const float *>(taps.keep);
  if (keep != nullptr && above + below == 0 && length == kVector) return copy_vectors(op, to);
  for (int64_t c = 0; c < x.channels; ++c) {
    const Real *from = arena_of(op) + x.offset + c * x.channel_stride;
    for (int64_t s = 0; s < taps.copies; ++s, to += taps.floats) {
      const sdk::Shift &shift = taps.shifts[s];
      if (above > 0) fill_zeros(to, above);
      if (keep != nullptr) {
        masked_image(to + above, from + first * row + shift.floats, length,
                     keep + s * taps.keep_period, taps.keep_period);
      } else {
        copy_rows(op, from, shift, first, last, to + above);
      }
      if (below > 0) fill_zeros(to + above + length, below);
    }
  }
}

// Floats of scratch that the copies take: up to 15 more are read, and dropped.
int64_t taps_scratch(const Operation &op) {
  if (op.taps.copies == 0) return 0;
  const int64_t numbers = op.is.x.channels * op.taps.copies * op.taps.floats + 16;
  return (numbers * (int64_t)sizeof(Real) + 63) / 64 * 16;
}

// The copies for a span, made unless this thread has them; the address of the image's first pixel
// in the first one.
SDK_INLINE const Real *taps_of(const Operation &op, int64_t span, Scratch &scratch) {
  Real *copies = reinterpret_cast<Real *>(scratch.floats);
  const sdk::TapRows &rows = op.taps.rows[span];
  if (scratch.tapped != &op || scratch.span != span || scratch.pass != op.step->pass) {
    make_taps(op, rows, copies);
    scratch.tapped = &op;
    scratch.span = span;
    scratch.pass = op.step->pass;
  }
  return copies - rows.first * op.taps.row;
}

}  // namespace
