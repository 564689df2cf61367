// Operations that only move or add pixels.
#pragma once

#include "operation.h"
#include "vec.h"

namespace {

using sdk::Operation;

SDK_INLINE float *pixel_row(const Operation &op, const sdk_tensor &t, int64_t c, int64_t h) {
  return op.step->arena + t.offset + c * t.channel_stride + h * t.row_stride;
}

int64_t x_channels(const Operation &op) { return op.is.x.channels; }
int64_t out_channels(const Operation &op) { return op.is.out.channels; }

// A channel of the input into lanes; lanes past the batch hold zeros.
void load_input(const Operation &op, int64_t c, float *) {
  const sdk_tensor &out = op.is.out;
  const int64_t lanes = op.step->lanes, batch = op.step->batch;
  const int64_t width = out.width, height = out.height;
  for (int64_t h = 0; h < height; ++h) {
    float *to = pixel_row(op, out, c, h);
    for (int64_t n = 0; n < batch; ++n) {
      const float *from = op.step->input + ((n * out.channels + c) * height + h) * width;
      for (int64_t w = 0; w < width; ++w) to[w * lanes + n] = from[w];
    }
    for (int64_t n = batch; n < lanes; ++n)
      for (int64_t w = 0; w < width; ++w) to[w * lanes + n] = 0.0f;
  }
}

void store_output(const Operation &op, int64_t c, float *) {
  const sdk_tensor &x = op.is.x;
  const int64_t lanes = op.step->lanes, batch = op.step->batch;
  for (int64_t h = 0; h < x.height; ++h) {
    const float *from = pixel_row(op, x, c, h);
    for (int64_t n = 0; n < batch; ++n) {
      float *to = op.step->output + ((n * x.channels + c) * x.height + h) * x.width;
      for (int64_t w = 0; w < x.width; ++w) to[w] = from[w * lanes + n];
    }
  }
}

// count pixels of `lanes` floats, every to_step-th or from_step-th pixel.
SDK_INLINE void copy_pixels(float *to, int64_t to_step, const float *from, int64_t from_step,
                            int64_t count, int64_t lanes) {
  if (lanes == 1) {
    for (int64_t i = 0; i < count; ++i) to[i * to_step] = from[i * from_step];
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t n = 0; n < lanes; n += kVector) {
      const int64_t left = lanes - n < kVector ? lanes - n : kVector;
      store(to + i * to_step * lanes + n, load(from + i * from_step * lanes + n, left), left);
    }
}

SDK_INLINE void copy_row(float *to, const float *from, int64_t length) {
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
    const float *from = pixel_row(op, x, c, h);
    float *to = pixel_row(op, out, c, 2 * h);
    copy_pixels(to, 2, from, 1, x.width, lanes);
    copy_pixels(to + lanes, 2, from, 1, x.width, lanes);
    copy_row(pixel_row(op, out, c, 2 * h + 1), to, out.width * lanes);
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
    const float *a = pixel_row(op, op.is.x, c, h), *b = pixel_row(op, op.is.y, c, h);
    float *to = pixel_row(op, out, c, h);
    for (int64_t i = 0; i < length; i += kVector) {
      const int64_t n = length - i < kVector ? length - i : kVector;
      store(to + i, load(a + i, n) + load(b + i, n), n);
    }
  }
}

}  // namespace
