// Softmax attention and linear attention over the pixels of one head.
//
// The lanes of a vector are images, one vector a pixel, or neighbouring pixels of one image
// ("planar"). Where the tensors cannot be read as such vectors of floats in place, a head is copied
// into scratch and back.
#pragma once

#include "real.h"

namespace {

constexpr int kBlockA = 4, kBlockB = kManyRegisters ? 4 : 2;
constexpr int64_t kRun = 8;  // vectors of pixels whose exponentials are held at once

// A strided operand: element (i, k) at p + i * item + k * term.
struct Operand {
  const float *p;
  int64_t item, term;
};

template <bool Broadcast, bool Accumulate, int A, int B>
SDK_INLINE void product_block(Operand a, Operand b, float *c, int64_t c_a, int64_t c_b,
                              int64_t terms) {
  Vec sum[A][B] = {};
  for (int64_t k = 0; k < terms; ++k) {
    Vec left[A];
#pragma GCC unroll 4
    for (int i = 0; i < A; ++i) left[i] = load(a.p + i * a.item + k * a.term);
#pragma GCC unroll 4
    for (int j = 0; j < B; ++j) {
      const float *p = b.p + j * b.item + k * b.term;
      const Vec right = Broadcast ? splat(*p) : load(p);
#pragma GCC unroll 4
      for (int i = 0; i < A; ++i) sum[i][j] += left[i] * right;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < A; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < B; ++j) {
      float *to = c + i * c_a + j * c_b;
      store(to, Accumulate ? load(to) + sum[i][j] : sum[i][j]);
    }
}

// c[i, j] (+)= sum_k a[i, k] b[j, k], lane by lane; b is vectors, or numbers for all lanes.
template <bool Broadcast, bool Accumulate>
void product(Operand a, Operand b, float *c, int64_t c_a, int64_t c_b, int64_t count_a,
             int64_t count_b, int64_t terms) {
  for (int64_t i = 0; i < count_a;) {
    const bool wide = count_a - i >= kBlockA;
    const Operand left = {a.p + i * a.item, a.item, a.term};
    for (int64_t j = 0; j < count_b;) {
      const bool deep = count_b - j >= kBlockB;
      const Operand right = {b.p + j * b.item, b.item, b.term};
      float *to = c + i * c_a + j * c_b;
      if (wide && deep) {
        product_block<Broadcast, Accumulate, kBlockA, kBlockB>(left, right, to, c_a, c_b, terms);
      } else if (wide) {
        product_block<Broadcast, Accumulate, kBlockA, 1>(left, right, to, c_a, c_b, terms);
      } else if (deep) {
        product_block<Broadcast, Accumulate, 1, kBlockB>(left, right, to, c_a, c_b, terms);
      } else {
        product_block<Broadcast, Accumulate, 1, 1>(left, right, to, c_a, c_b, terms);
      }
      j += deep ? kBlockB : 1;
    }
    i += wide ? kBlockA : 1;
  }
}

// q, k and v of one head as vectors: channel d, vector m at q + d * in + m * step.
struct Head {
  const float *q, *k, *v;
  float *out;
  int64_t in, result;  // floats between channels
  int64_t step;        // floats between vectors
  int64_t vectors, pixels;
  int64_t depth;  // dim_head
  bool planar;
  // Keys and values beside those of the pixels, the same for all images: [depth, more] each.
  const float *more_k, *more_v;
  int64_t more;
};

void softmax_head(const Head &head, float *scratch) {
  const int64_t pixels = head.pixels, keys = pixels + head.more, step = head.step;
  const int64_t next = head.planar ? 1 : step;  // floats between pixels of k and v
  const float scale = 1.0f / __builtin_sqrtf((float)head.depth);
  for (int64_t m = 0; m < head.vectors; m += kBlockA) {
    const int64_t count = head.vectors - m < kBlockA ? head.vectors - m : kBlockA;
    const Operand q = {head.q + m * step, step, head.in}, k = {head.k, next, head.in};
    const int64_t line = keys * kVector;
    if (head.planar) {
      product<true, false>(q, k, scratch, line, kVector, count, pixels, head.depth);
    } else {
      product<false, false>(q, k, scratch, line, kVector, count, pixels, head.depth);
    }
    float *more = scratch + pixels * kVector;
    product<true, false>(q, {head.more_k, 1, head.more}, more, line, kVector, count, head.more,
                         head.depth);
    for (int64_t i = 0; i < count; ++i) {
      float *s = scratch + i * line;
      Vec most = load(s);
      for (int64_t j = 1; j < keys; ++j) most = larger(load(s + j * kVector), most);
      Vec sum = {};
      for (int64_t j = 0; j < keys; ++j) {
        const Vec e = exponential((load(s + j * kVector) - most) * scale);
        store(s + j * kVector, e);
        sum += e;
      }
      const Vec inverse = 1.0f / sum;
      for (int64_t j = 0; j < keys; ++j) store(s + j * kVector, load(s + j * kVector) * inverse);
    }
    const Operand weights = {scratch, line, kVector}, v = {head.v, head.in, next};
    float *out = head.out + m * step;
    if (head.planar) {
      product<true, false>(weights, v, out, step, head.result, count, head.depth, pixels);
    } else {
      product<false, false>(weights, v, out, step, head.result, count, head.depth, pixels);
    }
    product<true, true>({more, line, kVector}, {head.more_v, head.more, 1}, out, step, head.result,
                        count, head.more > 0 ? head.depth : 0, head.more);
  }
}

void linear_head(const Head &head, float *scratch) {
  const int64_t depth = head.depth, step = head.step;
  float *run = scratch;                               // [depth, kRun] vectors
  float *context = run + depth * kRun * kVector;      // [depth, depth] vectors
  float *most = context + depth * depth * kVector;    // [depth] vectors
  float *sum = most + depth * kVector;                // [depth] vectors
  for (int64_t d = 0; d < depth; ++d) {
    const float *k = head.k + d * head.in;
    Vec m = load(k);
    for (int64_t i = 1; i < head.vectors; ++i) m = larger(load(k + i * step), m);
    for (int64_t i = 0; i < head.more; ++i) m = larger(splat(head.more_k[d * head.more + i]), m);
    store(most + d * kVector, head.planar ? splat(lane_max(m)) : m);
    store(sum + d * kVector, Vec{});
  }
  for (int64_t i = 0; i < depth * depth; ++i) store(context + i * kVector, Vec{});
  for (int64_t m = 0; m < head.vectors; m += kRun) {
    const int64_t count = head.vectors - m < kRun ? head.vectors - m : kRun;
    for (int64_t d = 0; d < depth; ++d) {
      const float *k = head.k + d * head.in + m * step;
      Vec total = load(sum + d * kVector);
      for (int64_t i = 0; i < count; ++i) {
        const Vec e = exponential(load(k + i * step) - load(most + d * kVector));
        store(run + (d * kRun + i) * kVector, e);
        total += e;
      }
      store(sum + d * kVector, total);
    }
    product<false, true>({run, kRun * kVector, kVector}, {head.v + m * step, head.in, step},
                         context, depth * kVector, kVector, depth, depth, count);
  }
  // Planar: sums are of all lanes, so each has its part.
  const float part = head.planar ? 1.0f / (float)kVector : 1.0f;
  for (int64_t i = 0; i < head.more; ++i)
    for (int64_t d = 0; d < depth; ++d) {
      const Vec key = splat(head.more_k[d * head.more + i]);
      const Vec e = exponential(key - load(most + d * kVector)) * part;
      store(sum + d * kVector, load(sum + d * kVector) + e);
      for (int64_t j = 0; j < depth; ++j) {
        float *to = context + (d * depth + j) * kVector;
        store(to, load(to) + e * head.more_v[j * head.more + i]);
      }
    }
  const float scale = 1.0f / (__builtin_sqrtf((float)depth) * (float)head.pixels);
  for (int64_t d = 0; d < depth; ++d) {
    const Vec total = load(sum + d * kVector);
    const Vec factor = scale / (head.planar ? splat(lane_sum(total)) : total);
    for (int64_t e = d * depth; e < (d + 1) * depth; ++e) {
      const Vec c = load(context + e * kVector) * factor;
      // Planar: the sums of all lanes, packed; number e lies at or before vector e.
      if (head.planar) {
        context[e] = lane_sum(c);
      } else {
        store(context + e * kVector, c);
      }
    }
  }
  for (int64_t m = 0; m < head.vectors; m += kRun) {
    const int64_t count = head.vectors - m < kRun ? head.vectors - m : kRun;
    for (int64_t i = 0; i < count; ++i) {
      const float *q = head.q + (m + i) * step;
      Vec top = load(q);
      for (int64_t d = 1; d < depth; ++d) top = larger(load(q + d * head.in), top);
      Vec total = {};
      for (int64_t d = 0; d < depth; ++d) {
        const Vec e = exponential(load(q + d * head.in) - top);
        store(run + (d * kRun + i) * kVector, e);
        total += e;
      }
      const Vec inverse = 1.0f / total;
      for (int64_t d = 0; d < depth; ++d) {
        float *e = run + (d * kRun + i) * kVector;
        store(e, load(e) * inverse);
      }
    }
    const Operand q = {run, kVector, kRun * kVector};
    float *out = head.out + m * step;
    if (head.planar) {
      product<true, false>(q, {context, 1, depth}, out, step, head.result, count, depth, depth);
    } else {
      product<false, false>(q, {context, kVector, depth * kVector}, out, step, head.result, count,
                            depth, depth);
    }
  }
}

SDK_INLINE bool contiguous(const sdk_tensor &t, int64_t lanes) {
  return t.height == 1 || t.row_stride == t.width * lanes;
}

// Whether the vectors can be read and written in place: as floats.
SDK_INLINE bool in_place(const Operation &op) {
  const int64_t lanes = op.step->lanes, pixels = (int64_t)op.is.x.height * op.is.x.width;
  return sizeof(Real) == sizeof(float) && contiguous(op.is.x, lanes) &&
         contiguous(op.is.out, lanes) && (lanes > 1 || pixels % kVector == 0);
}

SDK_INLINE int64_t head_slices(const Operation &op) {
  return op.step->lanes == 1 ? 1 : op.step->lanes / kVector;
}

int64_t attention_units(const Operation &op) { return op.is.heads * head_slices(op); }

// Vectors of one channel of a head.
SDK_INLINE int64_t head_vectors(const Operation &op) {
  const int64_t pixels = (int64_t)op.is.x.height * op.is.x.width;
  return op.step->lanes == 1 ? (pixels + kVector - 1) / kVector : pixels;
}

// Floats of a copied head: q, k, v and out.
SDK_INLINE int64_t copied_floats(const Operation &op) {
  return in_place(op) ? 0 : 4 * op.is.dim_head * head_vectors(op) * kVector;
}

int64_t softmax_scratch(const Operation &op) {
  const int64_t keys = (int64_t)op.is.x.height * op.is.x.width + op.is.groups;
  return copied_floats(op) + kBlockA * keys * (int64_t)kVector;
}

int64_t linear_scratch(const Operation &op) {
  const int64_t depth = op.is.dim_head;
  return copied_floats(op) + depth * (kRun + depth + 2) * kVector;
}

// One channel from the arena to scratch, or back: do(in scratch, in the arena, lanes) for each of
// its vectors, which begin a row where they are of one image.
template <class Number, class Do>
SDK_INLINE void channel_vectors(const Operation &op, const sdk_tensor &t, float *scratch,
                                Number *arena, Do move) {
  const int64_t lanes = op.step->lanes;
  for (int64_t h = 0; h < t.height; ++h, arena += t.row_stride) {
    if (lanes == 1) {
      for (int64_t w = 0; w < t.width; w += kVector)
        move(scratch + h * t.width + w, arena + w, t.width - w < kVector ? t.width - w : kVector);
    } else {
      for (int64_t w = 0; w < t.width; ++w)
        move(scratch + (h * t.width + w) * kVector, arena + w * lanes, (int64_t)kVector);
    }
  }
}

// Unit: a head of a slice of the images.
template <void (*Compute)(const Head &, float *)>
void attention(const Operation &op, int64_t unit, Scratch &scratch) {
  const sdk_tensor &x = op.is.x, &out = op.is.out;
  const int64_t slices = head_slices(op);
  const int64_t first = unit / slices, slice = unit % slices;  // head, then images
  const int64_t depth = op.is.dim_head, hidden = op.is.heads * depth;
  Head head = {};
  head.pixels = (int64_t)x.height * x.width;
  head.depth = depth;
  head.planar = op.step->lanes == 1;
  head.vectors = head_vectors(op);
  head.more = op.is.groups;
  head.more_k = op.is.a + first * depth * head.more;
  head.more_v = head.more_k + hidden * head.more;
  const Real *from = arena_of(op) + x.offset + first * depth * x.channel_stride + slice * kVector;
  Real *to = arena_of(op) + out.offset + first * depth * out.channel_stride + slice * kVector;
  if (in_place(op)) {
    head.step = head.planar ? kVector : op.step->lanes;
    head.in = x.channel_stride;
    head.result = out.channel_stride;
    head.q = reinterpret_cast<const float *>(from);
    head.k = head.q + hidden * x.channel_stride;
    head.v = head.k + hidden * x.channel_stride;
    head.out = reinterpret_cast<float *>(to);
    return Compute(head, scratch.floats);
  }
  head.step = kVector;
  head.in = head.result = head.vectors * kVector;
  float *copy[4];
  for (int i = 0; i < 4; ++i) copy[i] = scratch.floats + i * depth * head.in;
  for (int i = 0; i < 3; ++i)
    for (int64_t d = 0; d < depth; ++d) {
      float *channel = copy[i] + d * head.in;
      channel_vectors(op, x, channel, from + (i * hidden + d) * x.channel_stride,
                      [](float *a, const Real *b, int64_t n) { store(a, load(b, n), n); });
      // Past the image: keys that weigh nothing, and no values.
      for (int64_t p = head.pixels; head.planar && p < head.in; ++p)
        channel[p] = i == 1 ? -__builtin_inff() : 0.0f;
    }
  head.q = copy[0];
  head.k = copy[1];
  head.v = copy[2];
  head.out = copy[3];
  Compute(head, scratch.floats + copied_floats(op));
  for (int64_t d = 0; d < depth; ++d)
    channel_vectors(op, out, copy[3] + d * head.result, to + d * out.channel_stride,
                    [](const float *a, Real *b, int64_t n) { store(b, load(a, n), n); });
}

}  // namespace
