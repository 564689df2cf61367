// Operations that only move or add pixels.
#pragma once

#include "real.h"

namespace {

SDK_INLINE Real *pixel_row(const Operation &op, const sdk_tensor &t, int64_t c, int64_t h) {
  return arena_of(op) + t.offset + c * t.channel_stride + h * t.row_stride;
}

int64_t x_channels(const Operation &op) { return op.is.x.channels; }
int64_t out_channels(const Operation &op) { return op.is.out.channels; }

// A channel of the input into lanes; lanes past the images hold zeros.
void load_input(const Operation &op, int64_t c, float *) {
  const sdk_tensor &out = op.is.out;
  const int64_t lanes = op.step->lanes, images = op.step->images, width = out.width;
  const int64_t image = (int64_t)out.channels * out.height * width;
  for (int64_t h = 0; h < out.height; ++h) {
    const float *from = op.step->input + (c * out.height + h) * width;
    Real *to = pixel_row(op, out, c, h);
    if (lanes == 1) {
      for (int64_t w = 0; w < width; w += kVector) {
        const int64_t n = width - w < kVector ? width - w : kVector;
        store(to + w, load(from + w, n), n);
      }
      continue;
    }
    for (int64_t w = 0; w < width; ++w)
      for (int64_t n = 0; n < lanes; n += kVector) {
        float pixel[kVector] = {};
        for (int64_t i = 0; i < kVector && n + i < images; ++i) pixel[i] = from[(n + i) * image + w];
        store(to + w * lanes + n, load(pixel));
      }
  }
}

void store_output(const Operation &op, int64_t c, float *) {
  const sdk_tensor &x = op.is.x;
  const int64_t lanes = op.step->lanes, images = op.step->images, width = x.width;
  const int64_t image = (int64_t)x.channels * x.height * width;
  for (int64_t h = 0; h < x.height; ++h) {
    const Real *from = pixel_row(op, x, c, h);
    float *to = op.step->output + (c * x.height + h) * width;
    if (lanes == 1) {
      for (int64_t w = 0; w < width; w += kVector) {
        const int64_t n = width - w < kVector ? width - w : kVector;
        store(to + w, load(from + w, n), n);
      }
      continue;
    }
    for (int64_t w = 0; w < width; ++w)
      for (int64_t n = 0; n < lanes; n += kVector) {
        float pixel[kVector];
        store(pixel, load(from + w * lanes + n));
        for (int64_t i = 0; i < kVector && n + i < images; ++i) to[(n + i) * image + w] = pixel[i];
      }
  }
}

// count pixels of `lanes` floats, every to_step-th or from_step-th pixel.
SDK_INLINE void copy_pixels(Real *to, int64_t to_step, const Real *from, int64_t from_step,
                            int64_t count, int64_t lanes) {
  if (lanes == 1) {
    for (int64_t i = 0; i < count; ++i) to[i * to_step] = from[i * from_step];
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t n = 0; n < lanes; n += kVector)
      store(to + i * to_step * lanes + n, load(from + i * from_step * lanes + n));
}

SDK_INLINE void copy_row(Real *to, const Real *from, int64_t length) {
  for (int64_t i = 0; i < length; i += kVector) {
    const int64_t n = length - i < kVector ? length - i : kVector;
    store(to + i, load(from + i, n), n);
  }
}

// One channel of x becomes four of out.
void space_to_depth(const Operation &op, int64_t c, float *) {
  const sdk_tensor &x = op.is.x, &out = op.is.out;
  const int64_t lanes = op.step->lanes;
  for (int64_t i = 0; i < 2; ++i)
    for (int64_t j = 0; j < 2; ++j)
      for (int64_t h = 0; h < out.height; ++h)
        copy_pixels(pixel_row(op, out, (c * 2 + i) * 2 + j, h), 1,
                    pixel_row(op, x, c, 2 * h + i) + j * lanes, 2, out.width, lanes);
}

void upsample(const Operation &op, int64_t c, float *) {
  const sdk_tensor &x = op.is.x, &out = op.is.out;
  const int64_t lanes = op.step->lanes;
  for (int64_t h = 0; h < x.height; ++h) {
    const Real *from = pixel_row(op, x, c, h);
    Real *to = pixel_row(op, out, c, 2 * h);
    copy_pixels(to, 2, from, 1, x.width, lanes);
    copy_pixels(to + lanes, 2, from, 1, x.width, lanes);
    copy_row(pixel_row(op, out, c, 2 * h + 1), to, out.width * lanes);
  }
}

constexpr int64_t kTapChannels = 8;  // of x, a unit of work

int64_t taps_units(const Operation &op) {
  return (op.is.x.channels + kTapChannels - 1) / kTapChannels;
}

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

// The copies of an image whose floats lie side by side, by whole vectors.
SDK_INLINE void shifted_images(const Operation &op, Real *to, const Real *from, int64_t image) {
  const int64_t copies = op.is.out.channels / op.is.x.channels, period = op.keep_period;
  const int64_t stride = op.is.out.channel_stride;
  const float *keep = reinterpret_cast<const float *>(op.keep);
  const auto moved = [](const Real *x, const float *kept) {
    return (Vec)((IntVec)load(x) & (IntVec)load(kept));
  };
  if (period == kVector) {
    for (int64_t s = 0; s < copies; ++s, to += stride, keep += kVector) {
      const Real *x = from + op.shifts[s].floats;
      for (int64_t i = 0; i < image; i += kVector) store(to + i, moved(x + i, keep));
    }
    return;
  }
  for (int64_t s = 0; s < copies; ++s, to += stride, keep += period) {
    const Real *x = from + op.shifts[s].floats;
    for (int64_t start = 0; start < image; start += period)
      for (int64_t i = 0; i < period; i += kVector)
        store(to + start + i, moved(x + start + i, keep + i));
  }
}

SDK_INLINE void shifted_rows(const Operation &op, Real *to, const Real *from) {
  const sdk_tensor &x = op.is.x;
  const int64_t copies = op.is.out.channels / x.channels, row = x.width * op.step->lanes;
  for (int64_t s = 0; s < copies; ++s, to += op.is.out.channel_stride)
    for (int64_t h = 0; h < x.height; ++h) {
      const int64_t source = h + op.shifts[s].rows;
      if (source < 0 || source >= x.height) {
        fill_zeros(to + h * row, row);
      } else {
        shifted_row(to + h * row, from + source * x.row_stride, row,
                    op.shifts[s].columns * op.step->lanes);
      }
    }
}

void taps(const Operation &op, int64_t unit, float *) {
  const sdk_tensor &x = op.is.x, &out = op.is.out;
  const int64_t image = x.height * x.width * op.step->lanes;
  const int64_t copies = out.channels / x.channels;
  const int64_t tail = out.channel_stride - out.channel_lead - image;
  const int64_t end = (unit + 1) * kTapChannels;
  for (int64_t c = unit * kTapChannels; c < end && c < x.channels; ++c) {
    const Real *from = pixel_row(op, x, c, 0);
    Real *to = pixel_row(op, out, c * copies, 0);
    if (op.keep != nullptr) {
      shifted_images(op, to, from, image);
    } else {
      shifted_rows(op, to, from);
    }
    if (out.channel_stride == image) continue;
    for (int64_t s = 0; s < copies; ++s, to += out.channel_stride) {
      fill_zeros(to - out.channel_lead, out.channel_lead);
      fill_zeros(to + image, tail);
    }
  }
}

void copy(const Operation &op, int64_t c, float *) {
  const sdk_tensor &x = op.is.x, &out = op.is.out;
  for (int64_t h = 0; h < x.height; ++h)
    copy_row(pixel_row(op, out, c, h), pixel_row(op, x, c, h), x.width * op.step->lanes);
}

void add(const Operation &op, int64_t c, float *) {
  const sdk_tensor &out = op.is.out;
  const int64_t length = out.width * op.step->lanes;
  for (int64_t h = 0; h < out.height; ++h) {
    const Real *a = pixel_row(op, op.is.x, c, h), *b = pixel_row(op, op.is.y, c, h);
    Real *to = pixel_row(op, out, c, h);
    for (int64_t i = 0; i < length; i += kVector) {
      const int64_t n = length - i < kVector ? length - i : kVector;
      store(to + i, load(a + i, n) + load(b + i, n), n);
    }
  }
}

}  // namespace
