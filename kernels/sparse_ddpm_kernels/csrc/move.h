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
void load_input(const Operation &op, int64_t c, Scratch &) {
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

void store_output(const Operation &op, int64_t c, Scratch &) {
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

// Each of count pixels of `lanes` floats twice.
SDK_INLINE void double_pixels(Real *__restrict to, const Real *__restrict from, int64_t count,
                              int64_t lanes) {
  if (lanes == 1) {
    for (int64_t i = 0; i < count; ++i) to[2 * i] = to[2 * i + 1] = from[i];
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t n = 0; n < lanes; n += kVector) {
      const Vec v = load(from + i * lanes + n);
      store(to + 2 * i * lanes + n, v);
      store(to + (2 * i + 1) * lanes + n, v);
    }
}

// 2 * count pixels, those with even and with odd numbers apart.
SDK_INLINE void split_pixels(Real *__restrict even, Real *__restrict odd,
                             const Real *__restrict from, int64_t count, int64_t lanes) {
  if (lanes == 1) {
    for (int64_t i = 0; i < count; ++i) {
      even[i] = from[2 * i];
      odd[i] = from[2 * i + 1];
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t n = 0; n < lanes; n += kVector) {
      store(even + i * lanes + n, load(from + 2 * i * lanes + n));
      store(odd + i * lanes + n, load(from + (2 * i + 1) * lanes + n));
    }
}

SDK_INLINE void copy_row(Real *to, const Real *from, int64_t length) {
  for (int64_t i = 0; i < length; i += kVector) {
    const int64_t n = length - i < kVector ? length - i : kVector;
    store(to + i, load(from + i, n), n);
  }
}

// One channel of x becomes four of out.
void space_to_depth(const Operation &op, int64_t c, Scratch &) {
  const sdk_tensor &x = op.is.x, &out = op.is.out;
  for (int64_t h = 0; h < x.height; ++h)
    split_pixels(pixel_row(op, out, 4 * c + h % 2 * 2, h / 2),
                 pixel_row(op, out, 4 * c + h % 2 * 2 + 1, h / 2), pixel_row(op, x, c, h), out.width,
                 op.step->lanes);
}

void upsample(const Operation &op, int64_t c, Scratch &) {
  const sdk_tensor &x = op.is.x, &out = op.is.out;
  const int64_t lanes = op.step->lanes;
  for (int64_t h = 0; h < x.height; ++h) {
    Real *to = pixel_row(op, out, c, 2 * h);
    double_pixels(to, pixel_row(op, x, c, h), x.width, lanes);
    copy_row(pixel_row(op, out, c, 2 * h + 1), to, out.width * lanes);
  }
}

void copy(const Operation &op, int64_t c, Scratch &) {
  const sdk_tensor &x = op.is.x, &out = op.is.out;
  for (int64_t h = 0; h < x.height; ++h)
    copy_row(pixel_row(op, out, c, h), pixel_row(op, x, c, h), x.width * op.step->lanes);
}

void add(const Operation &op, int64_t c, Scratch &) {
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
