// Norms, forward and backward. Images are lanes, so statistics of an image are sums of vectors.
#pragma once

#include "train_conv.h"

namespace {

// 1 / (1 + e^-x).
SDK_INLINE Vec sigmoid(Vec x) {
  const Vec scaled = x * -kLog2E;
#if defined(__AVX512F__)
  const Vec t = (Vec)_mm512_maskz_min_ps(0xffff, _mm512_set1_ps(126.0f), (__m512)scaled);
  const Vec sum = 1.0f + power_of_two(t);
  const Vec guess = (Vec)_mm512_maskz_rcp14_ps(0xffff, (__m512)sum);
  return guess * (1.0f - sum * guess) + guess;
#else
  const Vec below = scaled > 126.0f ? splat(126.0f) : scaled;
  return 1.0f / (1.0f + power_of_two(below < -126.0f ? splat(-126.0f) : below));
#endif
}


// The sum of f(c, offset of a pixel in the channel) over a row.
template <class Function>
SDK_INLINE Vec row_sum(int64_t width, int64_t step, Function f) {
  Vec a = {}, b = {}, c = {}, d = {};
  int64_t w = 0;
  for (; w + 4 <= width; w += 4) {
    a += f(w * step);
    b += f((w + 1) * step);
    c += f((w + 2) * step);
    d += f((w + 3) * step);
  }
  for (; w < width; ++w) a += f(w * step);
  return (a + b) + (c + d);
}

// What a norm makes of a channel: z = scale * (x - mean) / deviation + shift, for each image.
struct Affine {
  Vec scale, shift;
};

SDK_INLINE Affine affine_of(const Work &work, const sdt_op &op, int64_t channels, int64_t c,
                            int64_t lane) {
  const sdt_job &job = *work.job;
  Affine affine = {splat(job.values[op.a + c]), splat(job.values[op.b + c])};
  if (op.film >= 0) {
    const float *film = job.film + (op.film + c) * work.lanes + lane;
    const Vec factor = 1.0f + load(film);
    affine.scale *= factor;
    affine.shift = affine.shift * factor + load(film + channels * work.lanes);
  }
  return affine;
}

void norm_act(const Work &work, const sdt_op &op) {
  const sdt_tensor &t = op.x;
  const int64_t lanes = work.lanes, size = t.channels / op.groups;
  const float count = (float)(size * t.height * t.width);
  const float *x = pixels_of(work, t);
  const float *y = op.y.channels > 0 ? pixels_of(work, op.y) : nullptr;
  float *out = pixels_of(work, op.out);
  for (int64_t g = 0; g < op.groups; ++g)
    for (int64_t lane = 0; lane < lanes; lane += kVector) {
      Vec mean = {}, square = {};
      for (int64_t c = g * size; c < (g + 1) * size; ++c)
        for (int64_t h = 0; h < t.height; ++h) {
          const float *from = x + c * t.channel_stride + h * t.row_stride + lane;
          mean += row_sum(t.width, lanes, [&](int64_t i) { return load(from + i); });
        }
      mean /= count;
      for (int64_t c = g * size; c < (g + 1) * size; ++c)
        for (int64_t h = 0; h < t.height; ++h) {
          const float *from = x + c * t.channel_stride + h * t.row_stride + lane;
          square += row_sum(t.width, lanes, [&](int64_t i) {
            const Vec d = load(from + i) - mean;
            return d * d;
          });
        }
      const Vec inverse = 1.0f / square_root(square / count + (float)op.eps);
      float *saved = work.job->arena + op.saved + 2 * g * lanes + lane;
      store(saved, mean);
      store(saved + lanes, inverse);
      for (int64_t c = g * size; c < (g + 1) * size; ++c) {
        const Affine affine = affine_of(work, op, t.channels, c, lane);
        const Vec scale = affine.scale * inverse, shift = affine.shift - mean * scale;
        for (int64_t h = 0; h < t.height; ++h) {
          const float *from = x + c * t.channel_stride + h * t.row_stride + lane;
          float *to = out + c * op.out.channel_stride + h * op.out.row_stride + lane;
          if (y == nullptr) {
            for (int64_t i = 0; i < t.width * lanes; i += lanes)
              store(to + i, silu(load(from + i) * scale + shift));
          } else {
            const float *add = y + c * op.y.channel_stride + h * op.y.row_stride + lane;
            for (int64_t i = 0; i < t.width * lanes; i += lanes)
              store(to + i, silu(load(from + i) * scale + shift) + load(add + i));
          }
        }
      }
    }
}

// With n = (x - mean) / deviation, z = scale n + shift, dz = dy silu'(z):
// dx = (scale dz - mean(scale dz) - n mean(scale dz n)) / deviation, means over the group.
void norm_act_back(const Work &work, const sdt_op &op) {
  const sdt_tensor &t = op.x;
  const sdt_job &job = *work.job;
  const int64_t lanes = work.lanes, size = t.channels / op.groups;
  const float count = (float)(size * t.height * t.width);
  const float *x = pixels_of(work, t), *dy = pixels_of(work, op.y);
  float *dx = pixels_of(work, op.out), *aside = work.scratch;
  // By channel: the gradients of gain and shift, lane by lane.
  float *gains = work.scratch + size * t.height * t.width * kVector;
  clear(gains, 2 * t.channels * kVector);
  for (int64_t g = 0; g < op.groups; ++g)
    for (int64_t lane = 0; lane < lanes; lane += kVector) {
      const float *saved = job.arena + op.saved + 2 * g * lanes + lane;
      const Vec mean = load(saved), inverse = load(saved + lanes);
      Vec first = {}, second = {};
      float *to = aside;
      for (int64_t c = g * size; c < (g + 1) * size; ++c) {
        const Affine affine = affine_of(work, op, t.channels, c, lane);
        Vec plain = {}, product = {};
        for (int64_t h = 0; h < t.height; ++h) {
          const float *from = x + c * t.channel_stride + h * t.row_stride + lane;
          const float *gradient = dy + c * op.y.channel_stride + h * op.y.row_stride + lane;
          for (int64_t i = 0; i < t.width * lanes; i += lanes, to += kVector) {
            const Vec n = (load(from + i) - mean) * inverse;
            const Vec z = n * affine.scale + affine.shift, s = sigmoid(z);
            const Vec dz = load(gradient + i) * (s + z * s * (1.0f - s));
            store(to, dz);
            plain += dz;
            product += dz * n;
          }
        }
        first += affine.scale * plain;
        second += affine.scale * product;
        Vec factor = splat(1.0f);
        if (op.film >= 0) {
          float *film = job.film_gradient + (op.film + c) * lanes + lane;
          store(film, product * job.values[op.a + c] + plain * job.values[op.b + c]);
          store(film + t.channels * lanes, plain);
          factor += load(job.film + (op.film + c) * lanes + lane);
        }
        float *gain = gains + c * kVector, *shift = gain + t.channels * kVector;
        store(gain, load(gain) + factor * product);
        store(shift, load(shift) + factor * plain);
      }
      first /= count;
      second /= count;
      const float *back = aside;
      for (int64_t c = g * size; c < (g + 1) * size; ++c) {
        const Vec scale = affine_of(work, op, t.channels, c, lane).scale * inverse;
        // dx = scale dz - inverse (first + n second), with n linear in x.
        const Vec slope = -inverse * inverse * second;
        const Vec start = -inverse * first - slope * mean;
        for (int64_t h = 0; h < t.height; ++h) {
          const float *from = x + c * t.channel_stride + h * t.row_stride + lane;
          float *gradient = dx + c * op.out.channel_stride + h * op.out.row_stride + lane;
          for (int64_t i = 0; i < t.width * lanes; i += lanes, back += kVector) {
            const Vec d = scale * load(back) + (slope * load(from + i) + start);
            store(gradient + i, op.accumulate ? load(gradient + i) + d : d);
          }
        }
      }
    }
  sum_lanes(gains, t.channels, job.gradients + op.a);
  sum_lanes(gains + t.channels * kVector, t.channels, job.gradients + op.b);
}

int64_t norm_act_scratch(const sdt_op &op) {
  const int64_t group = (int64_t)op.x.channels / op.groups * op.x.height * op.x.width;
  return (group + 2 * (int64_t)op.x.channels) * kVector;
}

// A few neighbouring vectors of one row, through all channels.
template <int Count>
SDK_INLINE void channel_norm_tile(const Work &work, const sdt_op &op, int64_t h, int64_t i) {
  const sdt_tensor &t = op.x;
  const float *x = pixels_of(work, t) + h * t.row_stride + i;
  float *out = pixels_of(work, op.out) + h * op.out.row_stride + i;
  Vec mean[Count] = {}, inverse[Count] = {};
  for (int64_t c = 0; c < t.channels; ++c)
    for (int v = 0; v < Count; ++v) mean[v] += load(x + c * t.channel_stride + v * kVector);
  for (int v = 0; v < Count; ++v) mean[v] /= (float)t.channels;
  for (int64_t c = 0; c < t.channels; ++c)
    for (int v = 0; v < Count; ++v) {
      const Vec d = load(x + c * t.channel_stride + v * kVector) - mean[v];
      inverse[v] += d * d;
    }
  float *saved = work.job->arena + op.saved + h * t.width * work.lanes + i;
  for (int v = 0; v < Count; ++v) {
    inverse[v] = 1.0f / square_root(inverse[v] / (float)t.channels + (float)op.eps);
    store(saved + v * kVector, mean[v]);
    store(saved + t.height * t.width * work.lanes + v * kVector, inverse[v]);
  }
  const float *y = nullptr;
  if (op.y.channels > 0) y = pixels_of(work, op.y) + h * op.y.row_stride + i;
  for (int64_t c = 0; c < t.channels; ++c)
    for (int v = 0; v < Count; ++v) {
      const Vec d = load(x + c * t.channel_stride + v * kVector) - mean[v];
      Vec scaled = d * inverse[v] * work.job->values[op.a + c];
      if (y != nullptr) scaled += load(y + c * op.y.channel_stride + v * kVector);
      store(out + c * op.out.channel_stride + v * kVector, scaled);
    }
}

template <int Count>
SDK_INLINE void channel_norm_back_tile(const Work &work, const sdt_op &op, int64_t h, int64_t i) {
  const sdt_tensor &t = op.x;
  const float *x = pixels_of(work, t) + h * t.row_stride + i;
  const float *dy = pixels_of(work, op.y) + h * op.y.row_stride + i;
  float *dx = pixels_of(work, op.out) + h * op.out.row_stride + i;
  const float *saved = work.job->arena + op.saved + h * t.width * work.lanes + i;
  Vec mean[Count], inverse[Count], plain[Count] = {}, product[Count] = {};
  for (int v = 0; v < Count; ++v) {
    mean[v] = load(saved + v * kVector);
    inverse[v] = load(saved + t.height * t.width * work.lanes + v * kVector);
  }
  for (int64_t c = 0; c < t.channels; ++c) {
    const float gain = work.job->values[op.a + c];
    float *sum = work.scratch + c * kVector;
    Vec total = load(sum);
    for (int v = 0; v < Count; ++v) {
      const Vec n = (load(x + c * t.channel_stride + v * kVector) - mean[v]) * inverse[v];
      const Vec d = load(dy + c * op.y.channel_stride + v * kVector);
      plain[v] += d * gain;
      product[v] += d * gain * n;
      total += d * n;
    }
    store(sum, total);
  }
  for (int v = 0; v < Count; ++v) {
    plain[v] /= (float)t.channels;
    product[v] /= (float)t.channels;
  }
  for (int64_t c = 0; c < t.channels; ++c) {
    const float gain = work.job->values[op.a + c];
    for (int v = 0; v < Count; ++v) {
      const Vec n = (load(x + c * t.channel_stride + v * kVector) - mean[v]) * inverse[v];
      const Vec d = load(dy + c * op.y.channel_stride + v * kVector) * gain;
      float *to = dx + c * op.out.channel_stride + v * kVector;
      const Vec found = inverse[v] * (d - plain[v] - n * product[v]);
      store(to, op.accumulate ? load(to) + found : found);
    }
  }
}

constexpr int kNormTile = kManyRegisters ? 4 : 2;

void channel_norm(const Work &work, const sdt_op &op) {
  const int64_t row = op.x.width * work.lanes;
  for (int64_t h = 0; h < op.x.height; ++h) {
    int64_t i = 0;
    for (; i + kNormTile * kVector <= row; i += kNormTile * kVector)
      channel_norm_tile<kNormTile>(work, op, h, i);
    for (; i < row; i += kVector) channel_norm_tile<1>(work, op, h, i);
  }
}

void channel_norm_back(const Work &work, const sdt_op &op) {
  const int64_t row = op.x.width * work.lanes;
  clear(work.scratch, op.x.channels * kVector);
  for (int64_t h = 0; h < op.x.height; ++h) {
    int64_t i = 0;
    for (; i + kNormTile * kVector <= row; i += kNormTile * kVector)
      channel_norm_back_tile<kNormTile>(work, op, h, i);
    for (; i < row; i += kVector) channel_norm_back_tile<1>(work, op, h, i);
  }
  sum_lanes(work.scratch, op.x.channels, work.job->gradients + op.a);
}

}  // namespace
