// Sparse convolution over panels: y[co, p] = bias[co] + sum_k value[k, co] * x[offset_k + p].
#pragma once

#include "taps.h"

namespace {

using sdk::TileArguments;
using sdk::TileFunction;

constexpr int kMaxGroup = kManyRegisters ? 16 : 8;

// Vectors of pixels in a register tile of G output channels. The accumulators leave room for the
// loaded pixels and one broadcast weight; x86 without fused multiply-add needs one more register.
constexpr int tile_limit(int group) {
  return kManyRegisters && kVector > 4 ? (group == 1   ? 16
                                          : group == 2 ? 12
                                          : group == 4 ? 6
                                          : group == 8 ? 3
                                                       : 1)
         // NEON keeps some registers for weights and addresses.
         : kManyRegisters ? (group == 1 ? 12 : group == 2 ? 8 : group == 4 ? 6 : group == 8 ? 3 : 1)
         : kVector == 8   ? (group == 1 ? 12 : group == 2 ? 6 : group == 4 ? 3 : 1)
                          : (group == 1 ? 8 : group == 2 ? 5 : group == 4 ? 2 : 1);
}

// Entries that are summed before the sum is put aside: rounding errors then grow with the root of
// a run and of the number of runs, not with the root of all entries.
constexpr int64_t kEntryRun = 256;

// The sums of one panel, plus the residual, on their way to memory.
template <int Group, int Rows, int Vectors, class Real>
SDK_INLINE void store_tile(const TileArguments &t, int64_t panel,
                           const Vec (&sum)[Group][Rows][Vectors]) {
#pragma GCC unroll 16
  for (int g = 0; g < Group; ++g) {
    const int64_t channel = t.slot[panel * t.group + t.part + g];
    if (channel < 0) continue;
    Real *out = static_cast<Real *>(t.out) + channel * t.out_channel;
    if (t.moments != nullptr) {
      float *moments = t.moments + channel * t.moments_channel;
      const Vec bias = splat(t.bias[panel * t.group + t.part + g]);
      Vec first = t.fresh ? Vec{} : load(moments), second = t.fresh ? Vec{} : load(moments + kVector);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) {
          const Vec d = sum[g][r][v] - bias;
          first += d;
          second += d * d;
        }
      store(moments, first);
      store(moments + kVector, second);
    }
    if (t.residual != nullptr) {
      const Real *residual = static_cast<const Real *>(t.residual) + channel * t.residual_channel;
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v)
          store(out + r * t.out_row + v * kVector,
                sum[g][r][v] + load(residual + r * t.residual_row + v * kVector));
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) store(out + r * t.out_row + v * kVector, sum[g][r][v]);
    }
  }
}

// Rows x Vectors of pixels by Group channels, stored as Real. With few accumulators, Split independent sums of
// every Split-th entry hide the latency of the multiply-add.
template <int Group, int Rows, int Vectors, class Real>
void conv_tile(const TileArguments &t) {
  constexpr int kSplit = Group * Rows * Vectors <= 2 ? 4 : Group * Rows * Vectors <= 4 ? 2 : 1;
  const int64_t x_row = t.x_row;
  const int group = t.group;
  for (int64_t panel = t.first; panel < t.last; ++panel) {
    Vec sum[kSplit][Group][Rows][Vectors], aside[Group][Rows][Vectors] = {};
#pragma GCC unroll 16
    for (int s = 0; s < kSplit; ++s)
#pragma GCC unroll 16
      for (int g = 0; g < Group; ++g) {
        const float start = s == 0 ? t.bias[panel * group + t.part + g] : 0.0f;
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
          for (int v = 0; v < Vectors; ++v) sum[s][g][r][v] = splat(start);
      }
    const int64_t begin = t.panel_ptr[panel], end = t.panel_ptr[panel + 1];
    const float *value = t.value + begin * group + t.part;
    for (int64_t k = begin; k < end;) {
      if (k > begin) {
#pragma GCC unroll 16
        for (int g = 0; g < Group; ++g)
#pragma GCC unroll 16
          for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < Vectors; ++v) {
              Vec &old = aside[g][r][v], &now = sum[0][g][r][v];
              old += now;
              now = splat(0.0f);
            }
      }
      const int64_t stop = end - k > kEntryRun ? k + kEntryRun : end;
      for (; k + kSplit <= stop; k += kSplit) {
#pragma GCC unroll 16
        for (int s = 0; s < kSplit; ++s) {
          const Real *x = static_cast<const Real *>(t.x) + t.offset[k + s];
          Vec pixels[Rows][Vectors];
#pragma GCC unroll 16
          for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < Vectors; ++v) pixels[r][v] = load(x + r * x_row + v * kVector);
          const Weights<Group> weights(value);
#pragma GCC unroll 16
          for (int g = 0; g < Group; ++g) {
            const Vec weight = weights[g];
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
              for (int v = 0; v < Vectors; ++v) sum[s][g][r][v] += weight * pixels[r][v];
          }
          value += group;
        }
      }
      if constexpr (kSplit > 1) {
        for (; k < stop; ++k) {
          const Real *x = static_cast<const Real *>(t.x) + t.offset[k];
#pragma GCC unroll 16
          for (int g = 0; g < Group; ++g)
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
              for (int v = 0; v < Vectors; ++v)
                sum[0][g][r][v] += value[g] * load(x + r * x_row + v * kVector);
          value += group;
        }
#pragma GCC unroll 16
        for (int s = 1; s < kSplit; ++s)
#pragma GCC unroll 16
          for (int g = 0; g < Group; ++g)
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
              for (int v = 0; v < Vectors; ++v) {
                sum[0][g][r][v] += sum[s][g][r][v];
                sum[s][g][r][v] = splat(0.0f);
              }
      }
    }
    if (end - begin > kEntryRun) {
#pragma GCC unroll 16
      for (int g = 0; g < Group; ++g)
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
          for (int v = 0; v < Vectors; ++v) sum[0][g][r][v] += aside[g][r][v];
    }
    store_tile<Group, Rows, Vectors, Real>(t, panel, sum[0]);
  }
}

#if defined(SDK_DOT)
constexpr int kDotGroup = 8;  // below, making pairs costs more than they save

// The two images of a pair of entries as pairs of neighbouring bfloat16.
template <class Real>
SDK_INLINE __m512bh pair_up(const Real *first, const Real *second, __m512i order) {
  const __m512bh both = _mm512_maskz_cvtne2ps_pbh(~(__mmask32)0, (__m512)load(second),
                                                  (__m512)load(first));
  return (__m512bh)_mm512_maskz_permutexvar_epi16(~(__mmask32)0, order, (__m512i)both);
}

// As conv_tile, on pairs of entries: t.panel_ptr counts pairs, t.offset has two for each, t.value
// two bfloat16 for each and channel. Products are exact, sums are float.
template <int Group, int Rows, int Vectors, class Real>
void dot_tile(const TileArguments &t) {
  alignas(64) static constexpr uint16_t kOrder[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(kOrder);
  const Real *base = static_cast<const Real *>(t.x);
  const int64_t x_row = t.x_row;
  const int group = t.group;
  for (int64_t panel = t.first; panel < t.last; ++panel) {
    Vec sum[Group][Rows][Vectors];
#pragma GCC unroll 16
    for (int g = 0; g < Group; ++g)
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) sum[g][r][v] = splat(t.bias[panel * group + t.part + g]);
    const int64_t begin = t.panel_ptr[panel], end = t.panel_ptr[panel + 1];
    const float *value = t.value + begin * group + t.part;
    for (int64_t k = begin; k < end; ++k, value += group) {
      const Real *first = base + t.offset[2 * k], *second = base + t.offset[2 * k + 1];
      __m512bh pixels[Rows][Vectors];
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v)
          pixels[r][v] = pair_up(first + r * x_row + v * kVector,
                                 second + r * x_row + v * kVector, order);
#pragma GCC unroll 16
      for (int g = 0; g < Group; ++g) {
        const __m512bh weight = (__m512bh)(__m512)splat(value[g]);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
          for (int v = 0; v < Vectors; ++v)
            sum[g][r][v] = (Vec)_mm512_dpbf16_ps((__m512)sum[g][r][v], pixels[r][v], weight);
      }
    }
    store_tile<Group, Rows, Vectors, Real>(t, panel, sum);
  }
}
#else
constexpr int kDotGroup = 0;
#endif

// The kernel of a tile. Scratch that holds floats is never read in pairs.
template <int Group, int Rows, int Vectors, class Stored>
constexpr TileFunction tile_of() {
#if defined(SDK_DOT)
  if constexpr (Group >= kDotGroup && sizeof(Stored) == sizeof(Real))
    return &dot_tile<Group, Rows, Vectors, Stored>;
#endif
  return &conv_tile<Group, Rows, Vectors, Stored>;
}

template <int Group, int Rows, int Vectors, class Real>
TileFunction pick_vectors(int vectors) {
  if constexpr (Vectors == 0) {
    return nullptr;
  } else {
    return vectors == Vectors ? tile_of<Group, Rows, Vectors, Real>()
                              : pick_vectors<Group, Rows, Vectors - 1, Real>(vectors);
  }
}

template <int Group, int Rows, class Real>
TileFunction pick_rows(int rows, int vectors) {
  if constexpr (Rows > tile_limit(Group)) {
    return nullptr;
  } else {
    return rows == Rows ? pick_vectors<Group, Rows, tile_limit(Group) / Rows, Real>(vectors)
                        : pick_rows<Group, 2 * Rows, Real>(rows, vectors);
  }
}

// The kernel of a tile; rows a power of two, rows * vectors <= tile_limit(group).
template <class Real>
TileFunction pick_tile(int32_t group, int32_t rows, int32_t vectors) {
  switch (group) {
    case 1: return pick_rows<1, 1, Real>(rows, vectors);
    case 2: return pick_rows<2, 1, Real>(rows, vectors);
    case 4: return pick_rows<4, 1, Real>(rows, vectors);
    case 8: return pick_rows<8, 1, Real>(rows, vectors);
    default: break;
  }
  if constexpr (kMaxGroup == 16) return pick_rows<16, 1, Real>(rows, vectors);
  return nullptr;
}

SDK_INLINE TileArguments tile_arguments(const Operation &op) {
  const sdk_op &is = op.is;
  TileArguments t = {};
  t.x_row = op.x_row;
  t.panel_ptr = is.panel_ptr;
  t.offset = is.offset;
  t.value = is.value;
  t.bias = op.bias;
  t.group = is.group;
  return t;
}

SDK_INLINE int64_t conv_spans(const Operation &op) {
  return (op.tile_count + op.span - 1) / op.span;
}

int64_t conv_units(const Operation &op) {
  return op.flat ? op.blocks : conv_spans(op) * op.blocks;
}

// A few tiles of the image through one block of panels.
void conv_rows(const Operation &op, int64_t unit, Scratch &scratch) {
  const sdk_op &is = op.is;
  Real *arena = arena_of(op);
  const int64_t block = unit % op.blocks, span = unit / op.blocks, first = span * op.span;
  const int64_t last = first + op.span < op.tile_count ? first + op.span : op.tile_count;
  TileArguments t = tile_arguments(op);
  t.slot = is.slot;
  t.first = op.block[block];
  t.last = op.block[block + 1];
  t.out_channel = is.out.channel_stride;
  t.out_row = is.out.row_stride;
  t.residual_channel = is.y.channel_stride;
  t.residual_row = is.y.row_stride;
  t.moments_channel = conv_spans(op) * 2 * kVector;
  if (op.moments != nullptr) t.moments = op.moments + span * 2 * kVector;
  const Real *x = op.taps.count > 0 ? taps_of(op, span, scratch) : arena + is.x.offset;
  const int step = is.group < kMaxGroup ? is.group : kMaxGroup;
  for (int64_t i = first; i < last; ++i) {
    const sdk::Tile &tile = op.tiles[i];
    t.x = x + tile.x;
    t.out = arena + is.out.offset + tile.out;
    if (is.y.channels > 0) t.residual = arena + is.y.offset + tile.residual;
    t.fresh = i == first;
    for (t.part = 0; t.part < is.group; t.part += step) tile.run(t);
  }
}

alignas(64) constexpr int32_t kOwnSlots[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// A block of panels over the whole image as one run, halo columns included (their sums are
// dropped): for images whose rows are no multiple of the vectors.
void conv_flat(const Operation &op, int64_t block, Scratch &scratch) {
  const sdk_op &is = op.is;
  const sdk_tensor &out = is.out;
  Real *arena = arena_of(op);
  const int64_t length = out.width * op.step->lanes;
  const Real *x = op.taps.count > 0 ? taps_of(op, 0, scratch) : arena + is.x.offset;
  Real *sums = reinterpret_cast<Real *>(scratch.floats + taps_scratch(op));
  TileArguments t = tile_arguments(op);
  const int step = is.group < kMaxGroup ? is.group : kMaxGroup;
  for (int64_t panel = op.block[block]; panel < op.block[block + 1]; ++panel) {
    t.panel_ptr = is.panel_ptr + panel;
    t.bias = op.bias + panel * is.group;
    t.slot = kOwnSlots;
    t.last = 1;
    t.out_channel = op.flat_floats;
    for (int64_t i = 0; i < op.tile_count; ++i) {
      t.x = x + op.tiles[i].x;
      t.out = sums + op.tiles[i].out;
      for (t.part = 0; t.part < is.group; t.part += step) op.tiles[i].run(t);
    }
    for (int g = 0; g < is.group; ++g) {
      const int64_t channel = is.slot[panel * is.group + g];
      if (channel < 0) continue;
      for (int64_t h = 0; h < out.height; ++h) {
        const Real *from = sums + g * op.flat_floats + h * op.x_row;
        Real *to = arena + out.offset + channel * out.channel_stride + h * out.row_stride;
        const Real *residual =
            is.y.channels > 0
                ? arena + is.y.offset + channel * is.y.channel_stride + h * is.y.row_stride
                : nullptr;
        for (int64_t i = 0; i < length; i += kVector) {
          const int64_t n = length - i < kVector ? length - i : kVector;
          Vec v = load(from + i, n);
          if (residual != nullptr) v += load(residual + i, n);
          store(to + i, v, n);
        }
      }
    }
  }
}

void conv(const Operation &op, int64_t unit, Scratch &scratch) {
  if (op.flat) {
    conv_flat(op, unit, scratch);
  } else {
    conv_rows(op, unit, scratch);
  }
}

int64_t conv_scratch(const Operation &op) {
  return taps_scratch(op) + (op.flat ? op.is.group * op.flat_floats : 0);
}

}  // namespace
