// Blocks of an image's pixels in scratch: cutting, 1x1 convolutions, means over channels.
#pragma once

#include "conv.h"
#include "norm.h"
#include "real.h"

namespace {

// Rows `first` to `last` (panels) of a 1x1 convolution on a block in scratch.
void weigh(const sdk_weight &weight, int64_t first, int64_t last, const float *x, float *out,
           int64_t stride, int64_t vectors) {
  TileArguments t = {};
  t.panel_ptr = weight.panel_ptr;
  t.offset = weight.offset;
  t.value = weight.value;
  t.slot = weight.slot;
  t.bias = weight.bias;
  t.group = weight.group;
  t.first = first;
  t.last = last;
  t.out_channel = stride;
  const int group = weight.group < kMaxGroup ? weight.group : kMaxGroup;
  const int64_t limit = tile_limit(group), strips = (vectors + limit - 1) / limit;
  for (int64_t s = 0; s < strips; ++s) {
    const int64_t start = vectors * s / strips, end = vectors * (s + 1) / strips;
    const TileFunction run = pick_tile<float>(group, 1, (int32_t)(end - start));
    t.x = x + start * kVector;
    t.out = out + start * kVector;
    for (t.part = 0; t.part < weight.group; t.part += group) run(t);
  }
}

// How an image is cut into blocks.
struct Cut {
  bool planar;  // a vector is neighbouring pixels, else images
  bool whole;   // all vectors can be read and written in place
  int64_t lanes, width, pixels, slices, blocks;

  explicit Cut(const Operation &op) {
    const sdk_op &is = op.is;
    lanes = op.step->lanes;
    planar = lanes == 1;
    width = is.x.width;
    pixels = width * is.x.height;
    slices = planar ? 1 : lanes / kVector;
    blocks = (pixels + is.block->pixels - 1) / is.block->pixels;
    whole = !planar || (pixels % kVector == 0 && in_vectors(is.x) &&
                        (is.out.channels == 0 || in_vectors(is.out)) &&
                        (is.y.channels == 0 || in_vectors(is.y)));
  }
  bool in_vectors(const sdk_tensor &t) const {
    return width % kVector == 0 || t.height == 1 || t.row_stride == width;
  }
};

// One block: `pixels` pixels from `first` on, in `vectors` vectors.
struct Block {
  int64_t first, pixels, vectors, shift;

  Block(const Operation &op, const Cut &cut, int64_t index, int64_t slice) {
    const int64_t most = op.is.block->pixels;
    first = index * most;
    pixels = cut.pixels - first < most ? cut.pixels - first : most;
    vectors = cut.planar ? (pixels + kVector - 1) / kVector : pixels;
    shift = slice * kVector;
  }
  // Of vector v from the tensor's first pixel.
  int64_t at(const Cut &cut, const sdk_tensor &t, int64_t v) const {
    const int64_t p = first + (cut.planar ? v * kVector : v);
    return p / cut.width * t.row_stride + p % cut.width * cut.lanes + shift;
  }
  // Lanes of the last vector that are pixels.
  int64_t last_lanes(const Cut &cut) const {
    return cut.planar ? pixels - (vectors - 1) * kVector : kVector;
  }
  // The runs of pixels that lie side by side in an image: do(index within the block, h, w, count).
  template <class Do>
  SDK_INLINE void runs(const Cut &cut, Do work) const {
    for (int64_t i = 0; i < pixels;) {
      const int64_t h = (first + i) / cut.width, w = (first + i) % cut.width;
      const int64_t count = cut.width - w < pixels - i ? cut.width - w : pixels - i;
      work(i, h, w, count);
      i += count;
    }
  }
};

template <class T>
SDK_INLINE void copy_floats(float *to, const T *from, int64_t count) {
  for (int64_t i = 0; i < count; i += kVector) {
    const int64_t n = count - i < kVector ? count - i : kVector;
    store(to + i, load(from + i, n), n);
  }
}

// Mean and 1 / deviation over the channels of Count vectors of pixels.
template <int Count, class T>
SDK_INLINE void pixel_moments(const T *const *x, int64_t stride, int64_t channels, float eps,
                              Vec *mean, Vec *inverse) {
  for (int v = 0; v < Count; ++v) mean[v] = inverse[v] = Vec{};
  for (int64_t run = 0; run < channels; run += kSumRun) {
    Vec part[Count] = {};
    const int64_t end = run + kSumRun < channels ? run + kSumRun : channels;
    for (int64_t c = run; c < end; ++c)
      for (int v = 0; v < Count; ++v) part[v] += load(x[v] + c * stride);
    for (int v = 0; v < Count; ++v) mean[v] += part[v];
  }
  for (int v = 0; v < Count; ++v) mean[v] /= (float)channels;
  for (int64_t run = 0; run < channels; run += kSumRun) {
    Vec part[Count] = {};
    const int64_t end = run + kSumRun < channels ? run + kSumRun : channels;
    for (int64_t c = run; c < end; ++c)
      for (int v = 0; v < Count; ++v) {
        const Vec d = load(x[v] + c * stride) - mean[v];
        part[v] += d * d;
      }
    for (int v = 0; v < Count; ++v) inverse[v] += part[v];
  }
  for (int v = 0; v < Count; ++v)
    inverse[v] = 1.0f / square_root(inverse[v] / (float)channels + eps);
}

template <int Count, class T>
SDK_INLINE void centre_vectors(const T *const *x, int64_t x_stride, int64_t channels, float eps,
                               float *centred, int64_t stride, float *inverses) {
  Vec mean[Count], inverse[Count];
  pixel_moments<Count>(x, x_stride, channels, eps, mean, inverse);
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < Count; ++v)
      store(centred + c * stride + v * kVector, load(x[v] + c * x_stride) - mean[v]);
  for (int v = 0; v < Count; ++v) store(inverses + v * kVector, inverse[v]);
}

// Vector v of the block lies at `from(v)`.
template <class From>
SDK_INLINE void centre_all(const Operation &op, const Block &block, From from, int64_t x_stride,
                           float *centred, float *inverses) {
  const int64_t stride = op.is.block->stride, channels = op.is.x.channels;
  const float eps = (float)op.is.block->eps;
  for (int64_t v = 0; v < block.vectors;) {
    decltype(from(0)) at[kColumns];
    const int64_t count = block.vectors - v < kColumns ? 1 : kColumns;
    for (int64_t i = 0; i < count; ++i) at[i] = from(v + i);
    float *to = centred + v * kVector, *inverse = inverses + v * kVector;
    if (count == 1) {
      centre_vectors<1>(at, x_stride, channels, eps, to, stride, inverse);
    } else {
      centre_vectors<kColumns>(at, x_stride, channels, eps, to, stride, inverse);
    }
    v += count;
  }
}

// A block's pixels without their mean, [channels, stride], and 1 / deviation. Past the image both
// are zero.
void centre(const Operation &op, const Cut &cut, const Block &block, float *centred,
            float *inverses) {
  const sdk_tensor &x = op.is.x;
  const Real *from = arena_of(op) + x.offset;
  const int64_t stride = op.is.block->stride;
  if (cut.whole) {
    const auto at = [&](int64_t v) { return from + block.at(cut, x, v); };
    centre_all(op, block, at, x.channel_stride, centred, inverses);
  } else {
    block.runs(cut, [&](int64_t i, int64_t h, int64_t w, int64_t count) {
      const Real *row = from + h * x.row_stride + w;
      for (int64_t c = 0; c < x.channels; ++c)
        copy_floats(centred + c * stride + i, row + c * x.channel_stride, count);
    });
    for (int64_t c = 0; c < x.channels; ++c)
      for (int64_t i = block.pixels; i < block.vectors * kVector; ++i)
        centred[c * stride + i] = 0.0f;
    const auto at = [&](int64_t v) { return static_cast<const float *>(centred) + v * kVector; };
    centre_all(op, block, at, stride, centred, inverses);
  }
  const int64_t n = block.last_lanes(cut);
  float *last = inverses + (block.vectors - 1) * kVector;
  store(last, load(last, n));
}

}  // namespace
