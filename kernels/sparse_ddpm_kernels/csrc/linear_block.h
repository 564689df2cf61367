// Linear attention between two channel norms, one block of pixels at a time: normalised pixels, q,
// k, v and the mix exist for a block only, in scratch that the caches hold.
//
// Softmax needs no maximum here: the plan has made sure that no exponential overflows. The norm's
// factor 1 / deviation goes to the sums that the convolutions return, not to each channel:
// k = (W centred) * inverse, and exp(k) v = (exp(k) inverse) (W centred).
#pragma once

#include "multiply.h"
#include "pixel_block.h"

namespace {

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
void linear_context(const Operation &op, int64_t unit, Scratch &scratch) {
  const Cut cut(op);
  const int64_t chunk = unit / cut.slices, slice = unit % cut.slices, chunks = op.is.block->chunks;
  float *slot = context_slot(op, cut, chunk, slice);
  const int64_t first = cut.blocks * chunk / chunks, end = cut.blocks * (chunk + 1) / chunks;
  const auto add = cut.planar ? &add_context<true> : &add_context<false>;
  for (int64_t i = first; i < end; ++i) add(op, cut, i, slice, i > first, slot, scratch.floats);
}

int64_t linear_merge_units(const Operation &op) { return op.is.block->heads * Cut(op).slices; }

int64_t linear_merge_scratch(const Operation &op) { return op.is.block->dim_head * kVector; }

// One head of one image or vector of images. Afterwards the rows of the first slot are those that
// apply multiplies by: exp(q[d]) where both q and k have weights; 1, if any q has none; the sum of
// exp(q[d]) over the d whose k has none, if there are such with q.
void linear_merge(const Operation &op, int64_t unit, Scratch &scratch) {
  float *factors = scratch.floats;
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
void linear_apply(const Operation &op, int64_t unit, Scratch &scratch) {
  const sdk_linear_block &b = *op.is.block;
  const Cut cut(op);
  const int64_t stride = b.stride, slice = unit % cut.slices, width = number_floats(cut);
  const Block block(op, cut, unit / cut.slices, slice);
  const float *slot = context_slot(op, cut, 0, slice);
  float *centred = scratch.floats, *inverses = centred + apply_rows(op) * stride;
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
