// Operations that move or add, and never multiply.
#pragma once

#include "train_conv.h"

namespace {

// Between [images, C, H, W] and lanes; lanes without an image are 0.
void load_images(const Work &work, const sdt_op &op) {
  const sdt_tensor &t = op.out;
  const int64_t size = t.height * t.width;
  float *to = pixels_of(work, t);
  for (int64_t c = 0; c < t.channels; ++c)
    for (int64_t h = 0; h < t.height; ++h)
      for (int64_t w = 0; w < t.width; ++w)
        for (int64_t n = 0; n < work.lanes; ++n)
          to[c * t.channel_stride + h * t.row_stride + w * work.lanes + n] =
              n < work.job->images
                  ? work.job->in[(n * t.channels + c) * size + h * t.width + w]
                  : 0.0f;
}

void store_images(const Work &work, const sdt_op &op) {
  const sdt_tensor &t = op.x;
  const int64_t size = t.height * t.width;
  const float *from = pixels_of(work, t);
  for (int64_t c = 0; c < t.channels; ++c)
    for (int64_t h = 0; h < t.height; ++h)
      for (int64_t w = 0; w < t.width; ++w)
        for (int64_t n = 0; n < work.job->images; ++n)
          work.job->out[(n * t.channels + c) * size + h * t.width + w] =
              from[c * t.channel_stride + h * t.row_stride + w * work.lanes + n];
}

void add(const Work &work, const sdt_op &op) {
  const sdt_tensor &x = op.x, &out = op.out;
  for (int64_t c = 0; c < x.channels; ++c)
    for (int64_t h = 0; h < x.height; ++h) {
      const float *from = pixels_of(work, x) + c * x.channel_stride + h * x.row_stride;
      float *to = pixels_of(work, out) + c * out.channel_stride + h * out.row_stride;
      for (int64_t i = 0; i < x.width * work.lanes; i += kVector)
        store(to + i, op.accumulate ? load(to + i) + load(from + i) : load(from + i));
    }
}

// f(a channel of four, the pixels of the wide tensor that it holds), row by row.
template <class Function>
SDK_INLINE void each_quarter(const Work &work, const sdt_tensor &wide, const sdt_tensor &deep,
                             Function f) {
  for (int64_t c = 0; c < deep.channels; ++c)
    for (int64_t h = 0; h < deep.height; ++h) {
      const int64_t i = c / 2 % 2, j = c % 2;
      f(pixels_of(work, deep) + c * deep.channel_stride + h * deep.row_stride,
        pixels_of(work, wide) + c / 4 * wide.channel_stride + (2 * h + i) * wide.row_stride +
            j * work.lanes);
    }
}

void space_to_depth(const Work &work, const sdt_op &op) {
  each_quarter(work, op.x, op.out, [&](float *to, const float *from) {
    for (int64_t w = 0; w < op.out.width; ++w, to += work.lanes, from += 2 * work.lanes)
      for (int64_t l = 0; l < work.lanes; l += kVector) store(to + l, load(from + l));
  });
}

void space_to_depth_back(const Work &work, const sdt_op &op) {
  each_quarter(work, op.out, op.y, [&](const float *from, float *to) {
    for (int64_t w = 0; w < op.y.width; ++w, from += work.lanes, to += 2 * work.lanes)
      for (int64_t l = 0; l < work.lanes; l += kVector)
        store(to + l, op.accumulate ? load(to + l) + load(from + l) : load(from + l));
  });
}

void upsample(const Work &work, const sdt_op &op) {
  const int64_t lanes = work.lanes;
  for (int64_t c = 0; c < op.out.channels; ++c)
    for (int64_t h = 0; h < op.out.height; ++h) {
      const float *from = pixels_of(work, op.x) + c * op.x.channel_stride + h / 2 * op.x.row_stride;
      float *to = pixels_of(work, op.out) + c * op.out.channel_stride + h * op.out.row_stride;
      for (int64_t w = 0; w < op.out.width; ++w)
        for (int64_t l = 0; l < lanes; l += kVector)
          store(to + w * lanes + l, load(from + w / 2 * lanes + l));
    }
}

void upsample_back(const Work &work, const sdt_op &op) {
  const int64_t lanes = work.lanes;
  for (int64_t c = 0; c < op.out.channels; ++c)
    for (int64_t h = 0; h < op.out.height; ++h) {
      const float *one = pixels_of(work, op.y) + c * op.y.channel_stride + 2 * h * op.y.row_stride;
      const float *two = one + op.y.row_stride;
      float *to = pixels_of(work, op.out) + c * op.out.channel_stride + h * op.out.row_stride;
      for (int64_t w = 0; w < op.out.width; ++w, one += 2 * lanes, two += 2 * lanes, to += lanes)
        for (int64_t l = 0; l < lanes; l += kVector) {
          const Vec sum =
              (load(one + l) + load(one + lanes + l)) + (load(two + l) + load(two + lanes + l));
          store(to + l, op.accumulate ? load(to + l) + sum : sum);
        }
    }
}

}  // namespace
