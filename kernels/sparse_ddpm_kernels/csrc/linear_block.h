// Linear attention between two channel norms, one block of pixels at a time: normalised pixels, q,
// k, v and the mix exist for a block only, in scratch that the caches hold.
//
// Softmax needs no maximum here: the plan has made sure that no exponential overflows. The norm's
// factor 1 / deviation goes to the sums that the convolutions return, not to each channel:
// k = (W centred) * inverse, and exp(k) v = (exp(k) inverse) (W centred).
#pragma once

#include "conv.h"
#include "norm.h"
#include "real.h"

namespace {

constexpr int kTileA = 4, kTileB = kManyRegisters ? 6 : 2;

// A strided operand: element (i, k) at p + i * item + k * term.
struct Factor {
  const float *p;
  int64_t item, term;
};

// The sums over the lanes of four vectors.
SDK_INLINE void lane_sums(Vec a, Vec b, Vec c, Vec d, float *sums) {
#if defined(__SSE2__)
#if defined(__AVX512F__)
  const auto quad = [](Vec v) {
    const __m256 low = _mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 0);
    const __m256 half = low + _mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 1);
    return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
  };
#elif defined(__AVX2__)
  const auto quad = [](Vec v) {
    return _mm256_castps256_ps128((__m256)v) + _mm256_extractf128_ps((__m256)v, 1);
  };
#else
  const auto quad = [](Vec v) { return (__m128)v; };
#endif
  const __m128 qa = quad(a), qb = quad(b), qc = quad(c), qd = quad(d);
  const __m128 ab = _mm_unpacklo_ps(qa, qb) + _mm_unpackhi_ps(qa, qb);
  const __m128 cd = _mm_unpacklo_ps(qc, qd) + _mm_unpackhi_ps(qc, qd);
  _mm_storeu_ps(sums, _mm_movelh_ps(ab, cd) + _mm_movehl_ps(cd, ab));
#else
  sums[0] = lane_sum(a);
  sums[1] = lane_sum(b);
  sums[2] = lane_sum(c);
  sums[3] = lane_sum(d);
#endif
}

enum class Sums { kStore, kAdd, kStoreLanes, kAddLanes };

template <Sums To, bool Broadcast, int A, int B>
void multiply_tile(Factor a, Factor b, float *c, int64_t c_a, int64_t c_b, int64_t terms) {
  Vec sum[A][B] = {};
  for (int64_t k = 0; k < terms; ++k) {
    Vec left[A];
#pragma GCC unroll 4
    for (int i = 0; i < A; ++i) left[i] = load(a.p + i * a.item + k * a.term);
#pragma GCC unroll 6
    for (int j = 0; j < B; ++j) {
      const float *p = b.p + j * b.item + k * b.term;
      const Vec right = Broadcast ? splat(*p) : load(p);
#pragma GCC unroll 4
      for (int i = 0; i < A; ++i) sum[i][j] += left[i] * right;
    }
  }
#pragma GCC unroll 6
  for (int j = 0; j < B; ++j) {
    if (To == Sums::kStore || To == Sums::kAdd) {
#pragma GCC unroll 4
      for (int i = 0; i < A; ++i) {
        float *to = c + i * c_a + j * c_b;
        store(to, To == Sums::kAdd ? load(to) + sum[i][j] : sum[i][j]);
      }
    } else {
      float lanes[4];
      lane_sums(sum[0][j], A > 1 ? sum[A > 1][j] : Vec{}, A > 2 ? sum[A > 2 ? 2 : 0][j] : Vec{},
                A > 3 ? sum[A > 3 ? 3 : 0][j] : Vec{}, lanes);
      for (int i = 0; i < A; ++i) {
        float *to = c + i * c_a + j * c_b;
        *to = To == Sums::kAddLanes ? *to + lanes[i] : lanes[i];
      }
    }
  }
}

using MultiplyTile = void (*)(Factor, Factor, float *, int64_t, int64_t, int64_t);

// The kernel of a tile, 1 <= a <= A, 1 <= b <= B.
template <Sums To, bool Broadcast, int A, int B>
MultiplyTile pick_multiply(int64_t a, int64_t b) {
  if constexpr (A > 1) {
    if (a < A) return pick_multiply<To, Broadcast, A - 1, B>(a, b);
  }
  if constexpr (B > 1) {
    if (b < B) return pick_multiply<To, Broadcast, A, B - 1>(a, b);
  }
  return &multiply_tile<To, Broadcast, A, B>;
}

// c[i, j] (+)= sum_k a[i, k] b[j, k], lane by lane or over all lanes too; b is vectors, or numbers
// for all lanes. Cut into tiles of nearly equal sides.
template <Sums To, bool Broadcast>
void multiply(Factor a, Factor b, float *c, int64_t c_a, int64_t c_b, int64_t count_a,
              int64_t count_b, int64_t terms) {
  const int64_t parts_a = (count_a + kTileA - 1) / kTileA, parts_b = (count_b + kTileB - 1) / kTileB;
  for (int64_t n = 0; n < parts_b; ++n) {
    const int64_t j = count_b * n / parts_b, wide = count_b * (n + 1) / parts_b - j;
    for (int64_t m = 0; m < parts_a; ++m) {
      const int64_t i = count_a * m / parts_a, deep = count_a * (m + 1) / parts_a - i;
      pick_multiply<To, Broadcast, kTileA, kTileB>(deep, wide)(
          {a.p + i * a.item, a.item, a.term}, {b.p + j * b.item, b.item, b.term},
          c + i * c_a + j * c_b, c_a, c_b, terms);
    }
  }
}

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

// Numbers of a slot lie this far apart: floats, or vectors of images.
SDK_INLINE int64_t number_floats(const Cut &cut) { return cut.planar ? 1 : kVector; }

// The slot of a chunk for a slice of the images: floats, whatever activations are.
SDK_INLINE float *context_slot(const Operation &op, const Cut &cut, int64_t chunk, int64_t slice) {
  const sdk_linear_block &b = *op.is.block;
  const int64_t floats =
      cut.planar ? round_up(b.slot_numbers, 16) : b.slot_numbers * (int64_t)kVector;
  return reinterpret_cast<float *>(arena_of(op) + b.context) +
         (chunk * cut.slices + slice) * floats;
}

SDK_INLINE bool lacks_k(const sdk_linear_block &b, const sdk_linear_head &h) {
  return h.k_rows < b.dim_head;
}

template <class Count>
SDK_INLINE int64_t most_rows(const sdk_linear_block &b, Count count) {
  int64_t most = 0;
  for (int32_t h = 0; h < b.heads; ++h) {
    const int64_t rows = count(b.head[h]);
    if (rows > most) most = rows;
  }
  return most;
}

int64_t linear_context_units(const Operation &op) {
  const sdk_linear_block &b = *op.is.block;
  return b.heads == 0 ? 0 : b.chunks * Cut(op).slices;
}

int64_t linear_context_scratch(const Operation &op) {
  const sdk_linear_block &b = *op.is.block;
  const int64_t k = most_rows(b, [](const sdk_linear_head &h) { return h.k_rows + 1; });
  const int64_t v = most_rows(b, [](const sdk_linear_head &h) { return h.v_rows; });
  return (op.is.x.channels + 1 + k + v) * b.stride;
}

// One block into a slot; `add`: it is not the slot's first.
template <bool Planar>
void add_context(const Operation &op, const Cut &cut, int64_t index, int64_t slice, bool add,
                 float *slot, float *scratch) {
  const sdk_linear_block &b = *op.is.block;
  const Block block(op, cut, index, slice);
  const int64_t stride = b.stride, width = Planar ? 1 : kVector;
  float *centred = scratch, *inverses = centred + op.is.x.channels * stride;
  float *ks = inverses + stride;
  float *vs = ks + most_rows(b, [](const sdk_linear_head &h) { return h.k_rows + 1; }) * stride;
  centre(op, cut, block, centred, inverses);
  const int64_t tail = block.last_lanes(cut), whole = block.vectors - (tail < kVector);
  int64_t k_panel = 0, v_panel = 0;
  for (int32_t h = 0; h < b.heads; ++h) {
    const sdk_linear_head &head = b.head[h];
    const int64_t line = (head.v_rows + 1) * width;
    float *context = slot + head.context * width;
    weigh(b.k, k_panel, k_panel + head.k_panels, centred, ks, stride, block.vectors);
    weigh(b.v, v_panel, v_panel + head.v_panels, centred, vs, stride, block.vectors);
    k_panel += head.k_panels;
    v_panel += head.v_panels;
    for (int64_t d = 0; d < head.k_rows; ++d) {
      float *k = ks + d * stride, *total = context + d * line + head.v_rows * width;
      Vec sum = {};
      for (int64_t v = 0; v < whole; ++v) {
        const Vec inverse = load(inverses + v * kVector);
        const Vec e = power_of_two(load(k + v * kVector) * (inverse * kLog2E));
        sum += e;
        store(k + v * kVector, e * inverse);
      }
      if (whole < block.vectors) {
        float *last = k + whole * kVector;
        const Vec inverse = load(inverses + whole * kVector);
        const Vec e = power_of_two(load(last) * (inverse * kLog2E));
        store(last, e);
        sum += load(last, tail);
        store(last, e * inverse);
      }
      if (Planar) {
        *total = lane_sum(sum) + (add ? *total : 0.0f);
      } else {
        store(total, add ? load(total) + sum : sum);
      }
    }
    if (lacks_k(b, head)) copy_floats(ks + head.k_rows * stride, inverses, block.vectors * kVector);
    const auto product =
        Planar ? (add ? &multiply<Sums::kAddLanes, false> : &multiply<Sums::kStoreLanes, false>)
               : (add ? &multiply<Sums::kAdd, false> : &multiply<Sums::kStore, false>);
    product({ks, stride, kVector}, {vs, stride, kVector}, context, line, width,
            head.k_rows + lacks_k(b, head), head.v_rows, block.vectors);
  }
}

// A chunk of the pixels of one image, or of one vector of images.
void linear_context(const Operation &op, int64_t unit, float *scratch) {
  const Cut cut(op);
  const int64_t chunk = unit / cut.slices, slice = unit % cut.slices, chunks = op.is.block->chunks;
  float *slot = context_slot(op, cut, chunk, slice);
  const int64_t first = cut.blocks * chunk / chunks, end = cut.blocks * (chunk + 1) / chunks;
  const auto add = cut.planar ? &add_context<true> : &add_context<false>;
  for (int64_t i = first; i < end; ++i) add(op, cut, i, slice, i > first, slot, scratch);
}

int64_t linear_merge_units(const Operation &op) { return op.is.block->heads * Cut(op).slices; }

int64_t linear_merge_scratch(const Operation &op) { return op.is.block->dim_head * kVector; }

// One head of one image or vector of images. Afterwards the rows of the first slot are those that
// apply multiplies by: exp(q[d]) where both q and k have weights; 1, if any q has none; the sum of
// exp(q[d]) over the d whose k has none, if there are such with q.
void linear_merge(const Operation &op, int64_t unit, float *factors) {
  const sdk_linear_block &b = *op.is.block;
  const Cut cut(op);
  const int64_t slice = unit % cut.slices, width = number_floats(cut);
  const sdk_linear_head &head = b.head[unit / cut.slices];
  const int64_t line = (head.v_rows + 1) * width;
  float *first = context_slot(op, cut, 0, slice) + head.context * width;
  const int64_t next =  // slot
      b.chunks > 1 ? context_slot(op, cut, 1, slice) - context_slot(op, cut, 0, slice) : 0;
  const float scale = 1.0f / (__builtin_sqrtf((float)b.dim_head) * (float)cut.pixels);
  const auto total = [&](int64_t at, int64_t n) {
    Vec sum = load(first + at, n);
    for (int64_t chunk = 1; chunk < b.chunks; ++chunk) sum += load(first + chunk * next + at, n);
    return sum;
  };
  for (int64_t d = 0; d < head.k_rows; ++d) {
    const Vec sum = total(d * line + head.v_rows * width, width);
    store(factors + d * kVector, scale / (cut.planar ? splat(sum[0]) : sum));
  }
  const float mean_scale = scale / (float)cut.pixels;
  const float neither = (float)(b.dim_head - (head.q_rows + head.k_rows - head.both));
  const int64_t floats = head.v_rows * width;
  for (int64_t i = 0; i < floats; i += kVector) {
    const int64_t n = floats - i < kVector ? floats - i : kVector;
    Vec constant = {}, mean = {};
    for (int64_t d = 0; d < head.k_rows; ++d) {
      const Vec row = total(d * line + i, n) * load(factors + d * kVector);
      if (d < head.both) {
        store(first + d * line + i, row, n);
      } else {
        constant += row;
      }
    }
    if (lacks_k(b, head)) mean = total(head.k_rows * line + i, n) * mean_scale;
    int64_t to = head.both;
    if (head.q_rows < b.dim_head) store(first + to++ * line + i, constant + mean * neither, n);
    if (head.q_rows > head.both) store(first + to * line + i, mean, n);
  }
}

int64_t linear_apply_units(const Operation &op) {
  const Cut cut(op);
  return cut.blocks * cut.slices;
}

SDK_INLINE int64_t apply_rows(const Operation &op) {  // that x, then out's channels need
  return op.is.x.channels > op.is.out.channels ? op.is.x.channels : op.is.out.channels;
}

int64_t linear_apply_scratch(const Operation &op) {
  const sdk_linear_block &b = *op.is.block;
  int64_t rows = apply_rows(op) + 1;
  rows += most_rows(b, [](const sdk_linear_head &h) { return h.q_rows + 2; });
  for (int32_t h = 0; h < b.heads; ++h) rows += b.head[h].v_rows;
  return rows * b.stride;
}

// Rows of q to the terms that linear_merge names, in place, divided by their sum over all channels.
SDK_INLINE int64_t softmax_terms(const sdk_linear_block &b, const sdk_linear_head &head, float *q,
                                 const float *inverses, int64_t vectors) {
  const int64_t stride = b.stride;
  const bool constant = head.q_rows < b.dim_head, rest = head.q_rows > head.both;
  for (int64_t v = 0; v < vectors; ++v) {
    const Vec exponent = load(inverses + v * kVector) * kLog2E;
    float *column = q + v * kVector;
    Vec sum = {}, others = {};
    for (int64_t d = 0; d < head.both; ++d) {
      const Vec e = power_of_two(load(column + d * stride) * exponent);
      store(column + d * stride, e);
      sum += e;
    }
    for (int64_t d = head.both; d < head.q_rows; ++d)
      others += power_of_two(load(column + d * stride) * exponent);
    const Vec factor = 1.0f / (sum + others + (float)(b.dim_head - head.q_rows));
    for (int64_t d = 0; d < head.both; ++d)
      store(column + d * stride, load(column + d * stride) * factor);
    float *to = column + head.both * stride;
    if (constant) {
      store(to, factor);
      to += stride;
    }
    if (rest) store(to, others * factor);
  }
  return head.both + constant + rest;
}

template <int Count, bool Residual, class Out>
SDK_INLINE void norm_vectors(const Operation &op, const float *y, const Real *const *residual,
                             Out *const *out, int64_t out_stride, int64_t residual_stride) {
  const int64_t stride = op.is.block->stride, channels = op.is.out.channels;
  const float *at[Count];
  for (int v = 0; v < Count; ++v) at[v] = y + v * kVector;
  Vec mean[Count], inverse[Count];
  pixel_moments<Count>(at, stride, channels, (float)op.is.eps, mean, inverse);
  for (int64_t c = 0; c < channels; ++c) {
    const Vec gain = splat(op.is.a[c]);
    for (int v = 0; v < Count; ++v) {
      Vec z = (load(at[v] + c * stride) - mean[v]) * (inverse[v] * gain);
      if (Residual) z += load(residual[v] + c * residual_stride);
      store(out[v] + c * out_stride, z);
    }
  }
}

// Norm over the channels of a block, and its way into the arena.
template <bool Residual>
void norm_block(const Operation &op, const Cut &cut, const Block &block, float *ys) {
  const sdk_tensor &out = op.is.out, &y = op.is.y;
  Real *to = arena_of(op) + out.offset;
  const Real *from = arena_of(op) + y.offset;
  const int64_t stride = op.is.block->stride;
  for (int64_t v = 0; v < block.vectors;) {
    const Real *residual[kColumns] = {};
    const int64_t count = block.vectors - v < kColumns ? 1 : kColumns;
    float *column = ys + v * kVector;
    if (!cut.whole) {
      float *at[kColumns];
      for (int64_t i = 0; i < count; ++i) at[i] = column + i * kVector;
      if (count == 1) {
        norm_vectors<1, false>(op, column, residual, at, stride, 0);
      } else {
        norm_vectors<kColumns, false>(op, column, residual, at, stride, 0);
      }
      v += count;
      continue;
    }
    Real *at[kColumns];
    for (int64_t i = 0; i < count; ++i) {
      at[i] = to + block.at(cut, out, v + i);
      if (Residual) residual[i] = from + block.at(cut, y, v + i);
    }
    if (count == 1) {
      norm_vectors<1, Residual>(op, column, residual, at, out.channel_stride, y.channel_stride);
    } else {
      norm_vectors<kColumns, Residual>(op, column, residual, at, out.channel_stride,
                                       y.channel_stride);
    }
    v += count;
  }
  if (cut.whole) return;
  block.runs(cut, [&](int64_t i, int64_t h, int64_t w, int64_t count) {
    const Real *residual = from + h * y.row_stride + w;
    Real *target = to + h * out.row_stride + w;
    for (int64_t p = 0; p < count; p += kVector) {
      const int64_t n = count - p < kVector ? count - p : kVector;
      for (int64_t c = 0; c < out.channels; ++c) {
        Vec z = load(ys + c * stride + i + p, n);
        if (Residual) z += load(residual + c * y.channel_stride + p, n);
        store(target + c * out.channel_stride + p, z, n);
      }
    }
  });
}

// A block of pixels.
void linear_apply(const Operation &op, int64_t unit, float *scratch) {
  const sdk_linear_block &b = *op.is.block;
  const Cut cut(op);
  const int64_t stride = b.stride, slice = unit % cut.slices, width = number_floats(cut);
  const Block block(op, cut, unit / cut.slices, slice);
  const float *slot = context_slot(op, cut, 0, slice);
  float *centred = scratch, *inverses = centred + apply_rows(op) * stride;
  float *q = inverses + stride;
  float *mixed = q + most_rows(b, [](const sdk_linear_head &h) { return h.q_rows + 2; }) * stride;
  centre(op, cut, block, centred, inverses);
  int64_t panel = 0;
  float *mix = mixed;
  for (int32_t h = 0; h < b.heads; ++h) {
    const sdk_linear_head &head = b.head[h];
    const float *context = slot + head.context * width;
    weigh(b.q, panel, panel + head.q_panels, centred, q, stride, block.vectors);
    panel += head.q_panels;
    const int64_t terms = softmax_terms(b, head, q, inverses, block.vectors);
    const auto product =
        cut.planar ? &multiply<Sums::kStore, true> : &multiply<Sums::kStore, false>;
    product({q, kVector, stride}, {context, width, (head.v_rows + 1) * width}, mix, kVector, stride,
            block.vectors, head.v_rows, terms);
    mix += head.v_rows * stride;
  }
  float *ys = centred;  // the pixels are needed no more
  weigh(b.out, 0, b.out.panels, mixed, ys, stride, block.vectors);
  if (op.is.y.channels > 0) {
    norm_block<true>(op, cut, block, ys);
  } else {
    norm_block<false>(op, cut, block, ys);
  }
}

}  // namespace
