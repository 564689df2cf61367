// Attention, forward and backward. Every image is a lane, so a matrix of one image is a matrix of
// vectors: products of small matrices, lane by lane.
#pragma once

#include "train_norm.h"

namespace {

// Memory for whole vectors, taken piece by piece.
struct Pieces {
  float *next;
  float *take(int64_t floats) {
    float *p = next;
    next += floats;
    return p;
  }
};

// Channels between an image and scratch, where pixels lie without a halo: `count` of them from
// pixel `first` on, `stride` floats a channel.
template <class Function>
SDK_INLINE void each_pixel(const Work &work, const sdt_tensor &t, float *scratch, int64_t stride,
                           int64_t first, int64_t count, Function f) {
  for (int64_t c = 0; c < t.channels; ++c)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t h = (first + i) / t.width, w = (first + i) % t.width;
      float *p = pixels_of(work, t) + c * t.channel_stride + h * t.row_stride + w * work.lanes;
      float *s = scratch + c * stride + i * work.lanes;
      for (int64_t l = 0; l < work.lanes; l += kVector) f(p + l, s + l);
    }
}

SDK_INLINE void fetch(const Work &work, const sdt_tensor &t, float *scratch, int64_t stride,
                      int64_t first, int64_t count) {
  each_pixel(work, t, scratch, stride, first, count,
             [](const float *p, float *s) { store(s, load(p)); });
}

SDK_INLINE void put(const Work &work, const sdt_tensor &t, float *scratch, int64_t stride,
                    int64_t first, int64_t count, bool accumulate) {
  each_pixel(work, t, scratch, stride, first, count, [=](float *p, const float *s) {
    store(p, accumulate ? load(p) + load(s) : load(s));
  });
}

// e^x for x <= 0; as good as 0 below -87.
SDK_INLINE Vec decay(Vec x) { return power_of_two(larger(x * kLog2E, splat(-126.0f))); }

// x[d] := scale * softmax over d of `count` vectors side by side, channels `stride` apart.
void softmax_channels(float *x, int64_t channels, int64_t stride, int64_t count, float scale) {
  for (int64_t i = 0; i < count * kVector; i += kVector) {
    Vec most = load(x + i), sum = {};
    for (int64_t d = 1; d < channels; ++d) most = larger(most, load(x + d * stride + i));
    for (int64_t d = 0; d < channels; ++d) {
      const Vec e = decay(load(x + d * stride + i) - most);
      store(x + d * stride + i, e);
      sum += e;
    }
    const Vec factor = scale / sum;
    for (int64_t d = 0; d < channels; ++d)
      store(x + d * stride + i, load(x + d * stride + i) * factor);
  }
}

// c[i, j] (+)= sum_k a[i, k] b[j, k] for every lane.
template <Sums To>
SDK_INLINE void multiply_lanes(int64_t lanes, Factor a, Factor b, float *c, int64_t c_a,
                               int64_t c_b, int64_t count_a, int64_t count_b, int64_t terms) {
  for (int64_t l = 0; l < lanes; l += kVector)
    multiply<To, false>({a.p + l, a.item, a.term}, {b.p + l, b.item, b.term}, c + l, c_a, c_b,
                        count_a, count_b, terms);
}

// What linear attention keeps for its backward pass and what it works with. With k' = softmax of k
// over the P pixels, q' = softmax of q over d times dim_head^-1/2:
// context[d, e] = sum_p k'[d, p] v[e, p] / P, mix[e, p] = sum_d context[d, e] q'[d, p], for the
// channels e that are kept.
struct Linear {
  int64_t lanes, heads, dim, hidden, mixed, pixels, stride;
  const int32_t *kept;
  float *context, *most, *total;  // by head [dim, kept], [hidden], [hidden], each of all lanes
  float scale;

  Linear(const Work &work, const sdt_op &op)
      : lanes(work.lanes),
        heads(op.heads),
        dim(op.dim_head),
        hidden(heads * dim),
        mixed(op.kept[op.heads]),
        pixels((int64_t)op.x.height * op.x.width),
        stride(SDT_CHUNK * lanes),
        kept(op.kept),
        context(work.job->arena + op.saved),
        most(context + dim * mixed * lanes),
        total(most + hidden * lanes),
        scale(1.0f / __builtin_sqrtf((float)dim)) {}

  SDK_INLINE int64_t count(int64_t first) const {
    return pixels - first < SDT_CHUNK ? pixels - first : SDT_CHUNK;
  }
  SDK_INLINE Image image(float *p, int64_t count) const {
    return {p, stride, stride, 1, count * lanes / kVector};
  }
};

// One head: its channels of q and k begin at row `first`, those of v and of the mix at `begin`.
struct Head {
  int64_t first, begin, size;
  float *context;  // [dim, size]
  int64_t row;     // of the context

  SDK_INLINE Head(const Linear &is, int64_t h, float *contexts)
      : first(h * is.dim),
        begin(is.kept[h]),
        size(is.kept[h + 1] - begin),
        context(contexts + is.dim * begin * is.lanes),
        row(size * is.lanes) {}
};

// Takes in a chunk's k of one head: it becomes e^(k - most so far), and what was summed before is
// brought to the new maximum.
SDK_INLINE void take_keys(const Linear &is, const Head &head, float *k, int64_t count) {
  for (int64_t d = 0; d < is.dim; ++d)
    for (int64_t l = 0; l < is.lanes; l += kVector) {
      float *row = k + (head.first + d) * is.stride + l;
      float *most = is.most + (head.first + d) * is.lanes + l;
      float *total = is.total + (head.first + d) * is.lanes + l;
      const Vec before = load(most);
      Vec now = before, sum = {};
      for (int64_t i = 0; i < count; ++i) now = larger(now, load(row + i * is.lanes));
      for (int64_t i = 0; i < count; ++i) {
        const Vec e = decay(load(row + i * is.lanes) - now);
        store(row + i * is.lanes, e);
        sum += e;
      }
      const Vec factor = decay(before - now);
      store(most, now);
      store(total, load(total) * factor + sum);
      if (lane_max(now - before) > 0.0f)
        for (int64_t e = 0; e < head.size; ++e) {
          float *context = head.context + d * head.row + e * is.lanes + l;
          store(context, load(context) * factor);
        }
    }
}

SDK_INLINE void mix_chunk(const Linear &is, const Head &head, float *q, float *mix,
                          int64_t count) {
  float *of = q + head.first * is.stride;
  softmax_channels(of, is.dim, is.stride, count * is.lanes / kVector, is.scale);
  multiply_lanes<Sums::kStore>(is.lanes, {head.context, is.lanes, head.row},
                               {of, is.lanes, is.stride}, mix + head.begin * is.stride, is.stride,
                               is.lanes, head.size, count, is.dim);
}

void linear(const Work &work, const sdt_op &op) {
  const Linear is(work, op);
  const float *values = work.job->values;
  Pieces scratch = {work.scratch};
  float *x = scratch.take(op.x.channels * is.stride);
  float *kv = scratch.take((is.hidden + is.mixed) * is.stride);
  float *out = scratch.take(op.out.channels * is.stride);
  clear(is.context, is.dim * is.mixed * is.lanes);
  clear(is.total, is.hidden * is.lanes);
  for (int64_t i = 0; i < is.hidden * is.lanes; i += kVector)
    store(is.most + i, splat(-__builtin_inff()));
  for (int64_t first = 0; first < is.pixels; first += SDT_CHUNK) {
    const int64_t count = is.count(first);
    fetch(work, op.x, x, is.stride, first, count);
    product(op.w[1], values, is.image(x, count), is.image(kv, count), false);
    for (int64_t h = 0; h < is.heads; ++h) {
      const Head head(is, h, is.context);
      if (head.size == 0) continue;
      take_keys(is, head, kv, count);
      multiply_lanes<Sums::kAdd>(is.lanes, {kv + head.first * is.stride, is.stride, is.lanes},
                                 {kv + (is.hidden + head.begin) * is.stride, is.stride, is.lanes},
                                 head.context, head.row, is.lanes, is.dim, head.size, count);
    }
  }
  for (int64_t h = 0; h < is.heads; ++h) {
    const Head head(is, h, is.context);
    for (int64_t d = 0; d < is.dim; ++d)
      for (int64_t l = 0; l < is.lanes; l += kVector) {
        const Vec total = load(is.total + (head.first + d) * is.lanes + l);
        const Vec factor = 1.0f / (total * (float)is.pixels);
        for (int64_t e = 0; e < head.size; ++e) {
          float *context = head.context + d * head.row + e * is.lanes + l;
          store(context, load(context) * factor);
        }
      }
  }
  float *q = kv, *mix = kv + is.hidden * is.stride;
  for (int64_t first = 0; first < is.pixels; first += SDT_CHUNK) {
    const int64_t count = is.count(first);
    fetch(work, op.x, x, is.stride, first, count);
    product(op.w[0], values, is.image(x, count), is.image(q, count), false);
    for (int64_t h = 0; h < is.heads; ++h) {
      const Head head(is, h, is.context);
      if (head.size > 0) mix_chunk(is, head, q, mix, count);
    }
    product(op.w[2], values, is.image(mix, count), is.image(out, count), false);
    put(work, op.out, out, is.stride, first, count, false);
  }
}

// x[d] := y[d] * (x[d] - sum_d y[d] x[d] / scale): back through y = scale * softmax over d.
SDK_INLINE void softmax_channels_back(const float *y, float *x, int64_t channels, int64_t stride,
                                      int64_t count, float scale) {
  for (int64_t i = 0; i < count * kVector; i += kVector) {
    Vec sum = {};
    for (int64_t d = 0; d < channels; ++d) sum += load(y + d * stride + i) * load(x + d * stride + i);
    sum /= scale;
    for (int64_t d = 0; d < channels; ++d) {
      float *p = x + d * stride + i;
      store(p, load(y + d * stride + i) * (load(p) - sum));
    }
  }
}

void linear_back(const Work &work, const sdt_op &op) {
  const Linear is(work, op);
  const float *values = work.job->values;
  const int64_t rows = is.hidden + is.mixed;
  Pieces scratch = {work.scratch};
  float *x = scratch.take(op.x.channels * is.stride);
  float *dx = scratch.take(op.x.channels * is.stride);
  float *dy = scratch.take(op.y.channels * is.stride);
  float *one = scratch.take(rows * is.stride);  // q and the mix, or k and v
  float *two = scratch.take(rows * is.stride);  // their gradients
  float *dcontext = scratch.take(is.dim * is.mixed * is.lanes);
  float *inner = scratch.take(is.hidden * is.lanes);
  float *sums[3];
  for (int i = 0; i < 3; ++i) {
    sums[i] = scratch.take(gradient_floats(op.w[i]));
    clear(sums[i], gradient_floats(op.w[i]));
  }
  clear(dcontext, is.dim * is.mixed * is.lanes);

  float *q = one, *mix = one + is.hidden * is.stride;
  float *dq = two, *dmix = two + is.hidden * is.stride;
  clear(two, rows * is.stride);  // of heads of which nothing is kept
  for (int64_t first = 0; first < is.pixels; first += SDT_CHUNK) {
    const int64_t count = is.count(first), vectors = count * is.lanes / kVector;
    fetch(work, op.x, x, is.stride, first, count);
    fetch(work, op.y, dy, is.stride, first, count);
    product(op.w[0], values, is.image(x, count), is.image(q, count), false);
    product(op.w[5], values, is.image(dy, count), is.image(dmix, count), false);
    for (int64_t h = 0; h < is.heads; ++h) {
      const Head head(is, h, is.context), back(is, h, dcontext);
      if (head.size == 0) continue;
      mix_chunk(is, head, q, mix, count);
      const float *of = q + head.first * is.stride, *from = dmix + head.begin * is.stride;
      float *to = dq + head.first * is.stride;
      multiply_lanes<Sums::kAdd>(is.lanes, {of, is.stride, is.lanes}, {from, is.stride, is.lanes},
                                 back.context, back.row, is.lanes, is.dim, head.size, count);
      multiply_lanes<Sums::kStore>(is.lanes, {head.context, head.row, is.lanes},
                                   {from, is.lanes, is.stride}, to, is.stride, is.lanes, is.dim,
                                   count, head.size);
      softmax_channels_back(of, to, is.dim, is.stride, vectors, is.scale);
    }
    add_gradient(op.w[2], sums[2], is.image(mix, count), is.image(dy, count));
    add_gradient(op.w[0], sums[0], is.image(x, count), is.image(dq, count));
    product(op.w[3], values, is.image(dq, count), is.image(dx, count), false);
    put(work, op.out, dx, is.stride, first, count, op.accumulate != 0);
  }

  // Back through the softmax over pixels: dk = k' (dk' - sum_p k' dk'), where the sum is
  // sum_e dcontext[d, e] context[d, e].
  for (int64_t h = 0; h < is.heads; ++h) {
    const Head head(is, h, is.context), back(is, h, dcontext);
    for (int64_t d = 0; d < is.dim; ++d)
      for (int64_t l = 0; l < is.lanes; l += kVector) {
        Vec sum = {};
        for (int64_t e = 0; e < head.size; ++e) {
          const int64_t at = d * head.row + e * is.lanes + l;
          const Vec gradient = load(back.context + at);
          sum += gradient * load(head.context + at);
          store(back.context + at, gradient / (float)is.pixels);
        }
        store(inner + (head.first + d) * is.lanes + l, sum);
      }
  }
  float *k = one, *v = one + is.hidden * is.stride;
  float *dk = two, *dv = two + is.hidden * is.stride;
  for (int64_t first = 0; first < is.pixels; first += SDT_CHUNK) {
    const int64_t count = is.count(first);
    fetch(work, op.x, x, is.stride, first, count);
    product(op.w[1], values, is.image(x, count), is.image(one, count), false);
    for (int64_t h = 0; h < is.heads; ++h) {
      const Head head(is, h, is.context), back(is, h, dcontext);
      if (head.size == 0) continue;
      float *keys = k + head.first * is.stride, *dkeys = dk + head.first * is.stride;
      const float *most = is.most + head.first * is.lanes, *total = is.total + head.first * is.lanes;
      for (int64_t d = 0; d < is.dim; ++d)
        for (int64_t l = 0; l < is.lanes; l += kVector) {
          const Vec top = load(most + d * is.lanes + l);
          const Vec factor = 1.0f / load(total + d * is.lanes + l);
          float *row = keys + d * is.stride + l;
          for (int64_t i = 0; i < count * is.lanes; i += is.lanes)
            store(row + i, decay(load(row + i) - top) * factor);
        }
      multiply_lanes<Sums::kStore>(is.lanes, {back.context, is.lanes, back.row},
                                   {keys, is.lanes, is.stride}, dv + head.begin * is.stride,
                                   is.stride, is.lanes, head.size, count, is.dim);
      multiply_lanes<Sums::kStore>(is.lanes, {back.context, back.row, is.lanes},
                                   {v + head.begin * is.stride, is.lanes, is.stride}, dkeys,
                                   is.stride, is.lanes, is.dim, count, head.size);
      for (int64_t d = 0; d < is.dim; ++d)
        for (int64_t l = 0; l < is.lanes; l += kVector) {
          const Vec sum = load(inner + (head.first + d) * is.lanes + l);
          const float *row = keys + d * is.stride + l;
          float *to = dkeys + d * is.stride + l;
          for (int64_t i = 0; i < count * is.lanes; i += is.lanes)
            store(to + i, load(row + i) * (load(to + i) - sum));
        }
    }
    add_gradient(op.w[1], sums[1], is.image(x, count), is.image(two, count));
    product(op.w[4], values, is.image(two, count), is.image(dx, count), false);
    put(work, op.out, dx, is.stride, first, count, true);
  }
  for (int i = 0; i < 3; ++i) finish_gradient(op.w[i], sums[i], work.job->gradients);
}

int64_t linear_scratch(const sdt_op &op, int64_t lanes) {
  const int64_t hidden = (int64_t)op.heads * op.dim_head, mixed = op.kept[op.heads];
  const int64_t stride = SDT_CHUNK * lanes, rows = hidden + mixed;
  if (op.kind == SDT_LINEAR) return (op.x.channels + rows + op.out.channels) * stride;
  int64_t floats = (2 * op.x.channels + op.y.channels + 2 * rows) * stride;
  floats += (op.dim_head * mixed + hidden) * lanes;
  for (int i = 0; i < 3; ++i) floats += gradient_floats(op.w[i]);
  return floats;
}

}  // namespace
