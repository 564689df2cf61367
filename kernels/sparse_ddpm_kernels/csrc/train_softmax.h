// Softmax attention of all pixels, forward and backward: some queries at a time.
#pragma once

#include "train_attention.h"

namespace {

constexpr int64_t kQueries = 16;

struct Softmax {
  int64_t lanes, dim, hidden, pixels, stride;
  float scale;
  float *qkv, *weight;

  Softmax(const Work &work, const sdt_op &op)
      : lanes(work.lanes),
        dim(op.dim_head),
        hidden((int64_t)op.heads * dim),
        pixels((int64_t)op.x.height * op.x.width),
        stride(pixels * lanes),
        scale(1.0f / __builtin_sqrtf((float)dim)),
        qkv(work.scratch),
        weight(qkv + 3 * dim * stride) {}

  SDK_INLINE int64_t count(int64_t first) const {
    return pixels - first < kQueries ? pixels - first : kQueries;
  }
};

// The channels of one head.
SDK_INLINE sdt_tensor head_of(sdt_tensor t, int64_t first, int64_t dim) {
  t.offset += first * t.channel_stride;
  t.channels = (int32_t)dim;
  return t;
}

// weight[i, m]: of pixel m in the output of pixel first + i. q was multiplied by the scale.
SDK_INLINE void attend(const Softmax &is, int64_t first, int64_t count) {
  float *k = is.qkv + is.dim * is.stride;
  multiply_lanes<Sums::kStore>(is.lanes, {is.qkv + first * is.lanes, is.lanes, is.stride},
                               {k, is.lanes, is.stride}, is.weight, is.stride, is.lanes, count,
                               is.pixels, is.dim);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t l = 0; l < is.lanes; l += kVector)
      softmax_channels(is.weight + i * is.stride + l, is.pixels, is.lanes, 1, 1.0f);
}

SDK_INLINE void fetch_head(const Work &work, const sdt_op &op, const Softmax &is, int64_t h) {
  for (int part = 0; part < 3; ++part)
    fetch(work, head_of(op.x, part * is.hidden + h * is.dim, is.dim),
          is.qkv + part * is.dim * is.stride, is.stride, 0, is.pixels);
  for (int64_t i = 0; i < is.dim * is.stride; i += kVector)
    store(is.qkv + i, load(is.qkv + i) * is.scale);
}

void softmax(const Work &work, const sdt_op &op) {
  const Softmax is(work, op);
  float *v = is.qkv + 2 * is.dim * is.stride, *out = is.weight + kQueries * is.stride;
  for (int64_t h = 0; h < op.heads; ++h) {
    fetch_head(work, op, is, h);
    for (int64_t first = 0; first < is.pixels; first += kQueries) {
      const int64_t count = is.count(first);
      attend(is, first, count);
      multiply_lanes<Sums::kStore>(is.lanes, {v, is.stride, is.lanes},
                                   {is.weight, is.stride, is.lanes}, out + first * is.lanes,
                                   is.stride, is.lanes, is.dim, count, is.pixels);
    }
    put(work, head_of(op.out, h * is.dim, is.dim), out, is.stride, 0, is.pixels, false);
  }
}

void softmax_back(const Work &work, const sdt_op &op) {
  const Softmax is(work, op);
  float *q = is.qkv, *k = q + is.dim * is.stride, *v = k + is.dim * is.stride;
  float *dweight = is.weight + kQueries * is.stride, *dy = dweight + kQueries * is.stride;
  float *gradients = dy + is.dim * is.stride;
  float *dq = gradients, *dk = dq + is.dim * is.stride, *dv = dk + is.dim * is.stride;
  for (int64_t h = 0; h < op.heads; ++h) {
    fetch_head(work, op, is, h);
    fetch(work, head_of(op.y, h * is.dim, is.dim), dy, is.stride, 0, is.pixels);
    clear(dk, 2 * is.dim * is.stride);
    for (int64_t first = 0; first < is.pixels; first += kQueries) {
      const int64_t count = is.count(first), here = first * is.lanes;
      attend(is, first, count);
      multiply_lanes<Sums::kAdd>(is.lanes, {dy + here, is.stride, is.lanes},
                                 {is.weight, is.lanes, is.stride}, dv, is.stride, is.lanes, is.dim,
                                 is.pixels, count);
      multiply_lanes<Sums::kStore>(is.lanes, {dy + here, is.lanes, is.stride},
                                   {v, is.lanes, is.stride}, dweight, is.stride, is.lanes, count,
                                   is.pixels, is.dim);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t l = 0; l < is.lanes; l += kVector)
          softmax_channels_back(is.weight + i * is.stride + l, dweight + i * is.stride + l,
                                is.pixels, is.lanes, 1, 1.0f);
      multiply_lanes<Sums::kStore>(is.lanes, {k, is.stride, is.lanes},
                                   {dweight, is.stride, is.lanes}, dq + here, is.stride, is.lanes,
                                   is.dim, count, is.pixels);
      multiply_lanes<Sums::kAdd>(is.lanes, {q + here, is.stride, is.lanes},
                                 {dweight, is.lanes, is.stride}, dk, is.stride, is.lanes, is.dim,
                                 is.pixels, count);
    }
    for (int64_t i = 0; i < is.dim * is.stride; i += kVector)
      store(dq + i, load(dq + i) * is.scale);
    for (int part = 0; part < 3; ++part)
      put(work, head_of(op.out, part * is.hidden + h * is.dim, is.dim),
          gradients + part * is.dim * is.stride, is.stride, 0, is.pixels, op.accumulate != 0);
  }
}

int64_t softmax_scratch(const sdt_op &op, int64_t lanes) {
  const int64_t stride = (int64_t)op.x.height * op.x.width * lanes;
  const int64_t dims = op.kind == SDT_SOFTMAX ? 4 : 7;
  return (dims * op.dim_head + 2 * kQueries) * stride;
}

}  // namespace
