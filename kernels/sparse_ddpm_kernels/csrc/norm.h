// Group norm with FiLM and SiLU, and channel norm.
#pragma once

#include "real.h"

namespace {

SDK_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Sums and sums of squares of the distances from a pivot, one of the numbers themselves, so that the
// variance may be taken as E[d^2] - E[d]^2; in float over a run of a few, in double from there.
constexpr int64_t kMomentRun = 8;  // additions to one float

struct Moments {
  Vec pivot;
  Wide sum[2], square[2];

  SDK_INLINE explicit Moments(Vec p) : pivot(p), sum{}, square{} {}

  SDK_INLINE void add(Vec sums, Vec squares) {
    float s[kVector], q[kVector];
    store(s, sums);
    store(q, squares);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      sum[h] += __builtin_convertvector(*reinterpret_cast<const LooseHalf *>(s + h * kHalf), Wide);
      square[h] +=
          __builtin_convertvector(*reinterpret_cast<const LooseHalf *>(q + h * kHalf), Wide);
    }
  }

  // The vectors x[0], x[step], ... below x[length], the last one of what is left.
  SDK_INLINE void add_run(const Real *x, int64_t length, int64_t step) {
    constexpr int kWays = 4;
    int64_t i = 0;
    while (i + kWays * step <= length) {
      Vec s[kWays] = {}, q[kWays] = {};
      for (int64_t n = 0; n < kMomentRun && i + kWays * step <= length; ++n, i += kWays * step)
#pragma GCC unroll 4
        for (int w = 0; w < kWays; ++w) {
          const Vec v = load(x + i + w * step) - pivot;
          s[w] += v;
          q[w] += v * v;
        }
      add((s[0] + s[1]) + (s[2] + s[3]), (q[0] + q[1]) + (q[2] + q[3]));
    }
    if (i >= length) return;
    Vec s = {}, q = {};
    for (; i < length; i += step) {
      Vec v = (length - i < kVector ? load(x + i, length - i) : load(x + i)) - pivot;
      for (int64_t past = length - i; past < kVector; ++past) v[past] = 0.0f;  // not the pivot's
      s += v;
      q += v * v;
    }
    add(s, q);
  }
};

// Mean and 1 / sqrt(variance + eps) from the moments of `count` numbers.
SDK_INLINE void finish(double pivot, double sum, double square, double count, double eps,
                       float *mean, float *inverse) {
  const double m = sum / count;
  double variance = square / count - m * m;
  if (variance < 0.0) variance = 0.0;
  *mean = (float)(pivot + m);
  *inverse = (float)(1.0 / __builtin_sqrt(variance + eps));
}

// The statistics of a group repeat along a row: every vector (one image) or every `lanes`.
SDK_INLINE int64_t norm_period(const Operation &op) {
  return op.step->lanes == 1 ? kVector : op.step->lanes;
}

// An image as runs of floats: its rows, or all of it where no halo lies between them.
struct Rows {
  int64_t count, length;
};

SDK_INLINE bool gapless(const Operation &op, const sdk_tensor &t) {
  return t.channels == 0 || t.row_stride == t.width * op.step->lanes;
}

SDK_INLINE Rows rows_of(const Operation &op) {
  const sdk_tensor &t = op.is.x;
  const int64_t row = t.width * op.step->lanes;
  if (gapless(op, t) && gapless(op, op.is.y) && gapless(op, op.is.out))
    return {1, t.height * row};
  return {t.height, row};
}

int64_t norm_units(const Operation &op) { return op.is.groups; }

// mean, inverse: floats [period].
int64_t norm_scratch(const Operation &op) { return 2 * norm_period(op); }

// The sums of a channel's spans, and of their squares, about the channel's bias, moved to `pivot`.
SDK_INLINE void add_moments(const Operation &op, int64_t channel, double pivot, Wide *sum,
                            Wide *square) {
  const float *p = op.moments + channel * op.moment_spans * 2 * kVector;
  Vec s = {}, q = {};
  for (int64_t span = 0; span < op.moment_spans; ++span, p += 2 * kVector) {
    s += load(p);
    q += load(p + kVector);
  }
  const double bias = op.moment_bias == nullptr ? 0.0 : op.moment_bias[channel];
  const double d = bias - pivot;
  const double n = (double)op.is.x.height * op.is.x.width * op.step->lanes / kVector;
  for (int h = 0; h < 2; ++h) {
    float part[2][kHalf];
    for (int i = 0; i < kHalf; ++i) {
      part[0][i] = s[h * kHalf + i];
      part[1][i] = q[h * kHalf + i];
    }
    const Wide first =
        __builtin_convertvector(*reinterpret_cast<const LooseHalf *>(part[0]), Wide);
    const Wide second =
        __builtin_convertvector(*reinterpret_cast<const LooseHalf *>(part[1]), Wide);
    sum[h] += first + n * d;
    square[h] += second + (2.0 * d) * first + n * d * d;
  }
}

// As group_statistics, from what the convolution has left.
void known_statistics(const Operation &op, int64_t group, float *mean, float *inverse) {
  const sdk_tensor &in = op.is.x;
  const int64_t channels = in.channels / op.is.groups;
  const double count = (double)channels * in.height * in.width;
  const double pivot = op.moment_bias == nullptr ? 0.0 : op.moment_bias[group * channels];
  Wide sum[2] = {}, square[2] = {};
  for (int64_t c = group * channels; c < (group + 1) * channels; ++c)
    add_moments(op, c, pivot, sum, square);
  if (op.step->lanes == 1) {
    double s = 0.0, q = 0.0;
    for (int i = 0; i < kVector; ++i) {
      s += sum[i / kHalf][i % kHalf];
      q += square[i / kHalf][i % kHalf];
    }
    finish(pivot, s, q, count, op.is.eps, mean, inverse);
    for (int i = 1; i < kVector; ++i) {
      mean[i] = mean[0];
      inverse[i] = inverse[0];
    }
    return;
  }
  for (int i = 0; i < kVector; ++i)
    finish(pivot, sum[i / kHalf][i % kHalf], square[i / kHalf][i % kHalf], count, op.is.eps,
           mean + i, inverse + i);
}

void group_statistics(const Operation &op, const Real *x, float *mean, float *inverse) {
  const sdk_tensor &in = op.is.x;
  const int64_t lanes = op.step->lanes;
  const int64_t channels = in.channels / op.is.groups;
  const double count = (double)channels * in.height * in.width;
  const Rows rows = rows_of(op);
  if (lanes == 1) {
    Moments m(splat(number(*x)));
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t h = 0; h < rows.count; ++h)
        m.add_run(x + c * in.channel_stride + h * in.row_stride, rows.length, kVector);
    double sum = 0.0, square = 0.0;
    for (int h = 0; h < 2; ++h)
      for (int i = 0; i < kHalf; ++i) {
        sum += m.sum[h][i];
        square += m.square[h][i];
      }
    finish(number(*x), sum, square, count, op.is.eps, mean, inverse);
    for (int i = 1; i < kVector; ++i) {
      mean[i] = mean[0];
      inverse[i] = inverse[0];
    }
    return;
  }
  for (int64_t n = 0; n < lanes; n += kVector) {
    Moments m(load(x + n));
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t h = 0; h < rows.count; ++h)
        m.add_run(x + c * in.channel_stride + h * in.row_stride + n, rows.length - n, lanes);
    for (int h = 0; h < 2; ++h)
      for (int i = 0; i < kHalf; ++i)
        finish(m.pivot[h * kHalf + i], m.sum[h][i], m.square[h][i], count, op.is.eps,
               mean + n + h * kHalf + i, inverse + n + h * kHalf + i);
  }
}

template <bool Silu, bool Residual>
void norm_row(const Real *x, const Real *residual, Real *out, int64_t length, const float *mean,
              const float *inverse, int64_t period, float a, float b) {
  const auto apply = [b](Vec v, Vec m, Vec scale) {
    v = (v - m) * scale + b;
    return Silu ? stored_silu(v) : v;
  };
  int64_t i = 0, at = 0;
  if (period == kVector) {
    const Vec m = load(mean), scale = load(inverse) * a;
    for (; i + kVector <= length; i += kVector) {
      const Vec v = apply(load(x + i), m, scale);
      store(out + i, Residual ? v + load(residual + i) : v);
    }
  } else {
    for (; i + kVector <= length; i += kVector) {
      const Vec v = apply(load(x + i), load(mean + at), load(inverse + at) * a);
      store(out + i, Residual ? v + load(residual + i) : v);
      at += kVector;
      if (at == period) at = 0;
    }
  }
  if (i < length) {
    const int64_t n = length - i;
    const Vec v = apply(load(x + i, n), load(mean + at), load(inverse + at) * a);
    store(out + i, Residual ? v + load(residual + i, n) : v, n);
  }
}

// One group: its statistics, then its channels.
void norm_act(const Operation &op, int64_t group, Scratch &scratch) {
  const sdk_op &is = op.is;
  Real *arena = arena_of(op);
  const int64_t period = norm_period(op);
  float *mean = scratch.floats, *inverse = mean + period;
  const int64_t channels = is.x.channels / is.groups;
  if (op.moments != nullptr) {
    known_statistics(op, group, mean, inverse);
  } else {
    const Real *x = arena + is.x.offset + group * channels * is.x.channel_stride;
    group_statistics(op, x, mean, inverse);
  }
  const float *a = is.film < 0 ? is.a : op.step->row + is.film;
  const float *b = is.film < 0 ? is.b : a + is.x.channels;
  const bool residual = is.y.channels > 0;
  const auto row = is.silu ? (residual ? &norm_row<true, true> : &norm_row<true, false>)
                           : (residual ? &norm_row<false, true> : &norm_row<false, false>);
  const Rows rows = rows_of(op);
  for (int64_t c = group * channels; c < (group + 1) * channels; ++c)
    for (int64_t h = 0; h < rows.count; ++h)
      row(arena + is.x.offset + c * is.x.channel_stride + h * is.x.row_stride,
          arena + is.y.offset + c * is.y.channel_stride + h * is.y.row_stride,
          arena + is.out.offset + c * is.out.channel_stride + h * is.out.row_stride,
          rows.length, mean, inverse, period, a[c], b[c]);
}

constexpr int kColumns = 4;       // vectors of pixels that go through a channel norm together
constexpr int64_t kSumRun = 32;  // channels summed in one accumulator before it joins the total

// Count vectors of pixels at `x`, the last of them with `n` lanes if Count is 1.
template <int Count>
void channel_norm_pixels(const Operation &op, const Real *x, const Real *residual, Real *out,
                         int64_t n) {
  const sdk_op &is = op.is;
  const int64_t channels = is.x.channels, stride = is.x.channel_stride;
  const auto at = [n](const Real *p, int v) {
    return Count == 1 ? load(p, n) : load(p + v * kVector);
  };
  Vec mean[Count] = {}, inverse[Count] = {};
  for (int64_t run = 0; run < channels; run += kSumRun) {
    Vec part[Count] = {};
    const int64_t end = run + kSumRun < channels ? run + kSumRun : channels;
    for (int64_t c = run; c < end; ++c)
      for (int v = 0; v < Count; ++v) part[v] += at(x + c * stride, v);
    for (int v = 0; v < Count; ++v) mean[v] += part[v];
  }
  for (int v = 0; v < Count; ++v) mean[v] /= (float)channels;
  for (int64_t run = 0; run < channels; run += kSumRun) {
    Vec part[Count] = {};
    const int64_t end = run + kSumRun < channels ? run + kSumRun : channels;
    for (int64_t c = run; c < end; ++c)
      for (int v = 0; v < Count; ++v) {
        const Vec d = at(x + c * stride, v) - mean[v];
        part[v] += d * d;
      }
    for (int v = 0; v < Count; ++v) inverse[v] += part[v];
  }
  for (int v = 0; v < Count; ++v)
    inverse[v] = 1.0f / square_root(inverse[v] / (float)channels + (float)is.eps);
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < Count; ++v) {
      Vec y = (at(x + c * stride, v) - mean[v]) * inverse[v] * is.a[c];
      if (is.y.channels > 0) y += at(residual + c * is.y.channel_stride, v);
      if (Count == 1) {
        store(out + c * is.out.channel_stride, y, n);
      } else {
        store(out + c * is.out.channel_stride + v * kVector, y);
      }
    }
}

SDK_INLINE int64_t channel_norm_blocks(const Operation &op) {
  const int64_t length = op.is.x.width * op.step->lanes;
  return (length + kColumns * kVector - 1) / (kColumns * kVector);
}

int64_t channel_norm_units(const Operation &op) {
  return op.is.x.height * channel_norm_blocks(op);
}

// A few vectors of pixels of one row.
void channel_norm(const Operation &op, int64_t unit, Scratch &) {
  const sdk_op &is = op.is;
  const int64_t blocks = channel_norm_blocks(op);
  const int64_t h = unit / blocks;
  const int64_t length = is.x.width * op.step->lanes;
  int64_t i = unit % blocks * kColumns * kVector;
  const Real *x = arena_of(op) + is.x.offset + h * is.x.row_stride;
  const Real *residual = arena_of(op) + is.y.offset + h * is.y.row_stride;
  Real *out = arena_of(op) + is.out.offset + h * is.out.row_stride;
  if (i + kColumns * kVector <= length)
    return channel_norm_pixels<kColumns>(op, x + i, residual + i, out + i, kVector);
  for (; i < length; i += kVector)
    channel_norm_pixels<1>(op, x + i, residual + i, out + i,
                           length - i < kVector ? length - i : kVector);
}

}  // namespace
