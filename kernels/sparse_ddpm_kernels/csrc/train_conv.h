// Sparse convolution over panels, and the gradient of its weights.
#pragma once

#include "multiply.h"
#include "train.h"

namespace {

// What an operation sees of its job and its thread.
struct Work {
  const sdt_job *job;
  float *space[2];
  float *scratch;
  int64_t lanes;
};

SDK_INLINE float *pixels_of(const Work &work, const sdt_tensor &t) {
  return work.space[t.space] + t.offset;
}

// An image of several channels: whole vectors lie side by side in a row.
struct Image {
  float *p;
  int64_t channel, row;
  int64_t height, vectors;
};

SDK_INLINE Image image_of(const Work &work, const sdt_tensor &t) {
  return {pixels_of(work, t), t.channel_stride, t.row_stride, t.height,
          t.width * work.lanes / kVector};
}

// Vectors of sums that stay in registers.
constexpr int kSums = kManyRegisters ? 16 : 8;

struct Tile {
  const sdt_weight *w;
  const float *value;  // of the weight's first entry; when gradients are taken, their sums
  const float *bias;   // or null
  const float *x;
  int64_t x_row;
  float *y;  // read where gradients are taken
  int64_t y_channel, y_row;
  bool accumulate;
  int64_t chunk;
};

SDK_INLINE int64_t entries_of(const sdt_weight &w) { return w.panel_ptr[w.chunks * w.panels]; }
using TileFunction = void (*)(const Tile &);

template <int G, int Rows, int Vectors>
void product_tile(const Tile &t) {
  const sdt_weight &w = *t.w;
  const int64_t x_row = t.x_row;
  for (int64_t panel = 0; panel < w.panels; ++panel) {
    const int64_t first = panel * G, kept = w.rows - first < G ? w.rows - first : G;
    const int64_t *segment = w.panel_ptr + t.chunk * w.panels + panel;
    if (t.chunk > 0 && segment[0] == segment[1]) continue;
    float *y = t.y + first * t.y_channel;
    Vec sum[G][Rows][Vectors];
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
      const bool biased = t.bias != nullptr && t.chunk == 0 && g < kept;
      const Vec start = splat(biased ? t.bias[first + g] : 0.0f);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) sum[g][r][v] = start;
    }
    for (int64_t k = segment[0]; k < segment[1]; ++k) {
      const float *x = t.x + w.offset[k], *value = t.value + k * G;
      if constexpr (G == 1) {
        const Vec weight = splat(*value);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
          for (int v = 0; v < Vectors; ++v)
            sum[0][r][v] += weight * load(x + r * x_row + v * kVector);
      } else {
        Vec pixel[Rows][Vectors];
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
          for (int v = 0; v < Vectors; ++v) pixel[r][v] = load(x + r * x_row + v * kVector);
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g) {
          const Vec weight = splat(value[g]);
#pragma GCC unroll 16
          for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < Vectors; ++v) sum[g][r][v] += weight * pixel[r][v];
        }
      }
    }
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
      if (g >= kept) break;
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) {
          float *to = y + g * t.y_channel + r * t.y_row + v * kVector;
          store(to, t.accumulate || t.chunk > 0 ? load(to) + sum[g][r][v] : sum[g][r][v]);
        }
    }
  }
}

// The gradient of the output of one row stays in registers, and each of the row's entries goes by.
// Sums lie lane by lane in memory: those of the entries first, then those of the bias.
template <int G, int Rows, int Vectors>
void gradient_tile(const Tile &t) {
  static_assert(G == 1, "wider panels take another way");
  const sdt_weight &w = *t.w;
  const int64_t x_row = t.x_row;
  float *sums = const_cast<float *>(t.value);
  float *bias = t.chunk == 0 ? const_cast<float *>(t.bias) : nullptr;
  const int64_t *segment = w.panel_ptr + t.chunk * w.panels;
  for (int64_t row = 0; row < w.panels; ++row) {
    const int64_t first = segment[row], end = segment[row + 1];
    if (first == end && bias == nullptr) continue;
    Vec y[Rows][Vectors], total = {};
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) {
        y[r][v] = load(t.y + row * t.y_channel + r * t.y_row + v * kVector);
        total += y[r][v];
      }
    if (bias != nullptr) store(bias + row * kVector, load(bias + row * kVector) + total);
    for (int64_t k = first; k < end; ++k) {
      const float *x = t.x + w.offset[k];
      Vec even = load(sums + k * kVector), odd = {};
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) {
          const Vec pixel = load(x + r * x_row + v * kVector);
          if ((r * Vectors + v) % 2 == 0) {
            even += y[r][v] * pixel;
          } else {
            odd += y[r][v] * pixel;
          }
        }
      store(sums + k * kVector, even + odd);
    }
  }
}

template <bool Gradient, int G, int Rows, int Vectors>
constexpr TileFunction tile_of() {
  if constexpr (Gradient) {
    return &gradient_tile<G, Rows, Vectors>;
  } else {
    return &product_tile<G, Rows, Vectors>;
  }
}

// The kernel of rows x vectors, both powers of two, of at most `Limit` together.
template <bool Gradient, int G, int Limit, int Rows, int Vectors>
TileFunction pick_tile(int64_t rows, int64_t vectors) {
  if constexpr (Vectors > 1) {
    if (vectors < Vectors) return pick_tile<Gradient, G, Limit, Rows, Vectors / 2>(rows, vectors);
  }
  if constexpr (2 * Rows * Vectors <= Limit) {
    if (rows > Rows) return pick_tile<Gradient, G, Limit, 2 * Rows, Vectors>(rows, vectors);
  }
  return tile_of<Gradient, G, Rows, Vectors>();
}

SDK_INLINE int64_t power_below(int64_t limit, int64_t count) {
  int64_t power = 1;
  while (2 * power <= limit && 2 * power <= count) power *= 2;
  return power;
}

// Walks over an image of height x vectors in tiles of at most Limit vectors: tiles outside, rows
// inside, so that the input of a tile stays in the cache.
template <bool Gradient, int G>
void walk_tiles(Tile t, int64_t height, int64_t vectors) {
  constexpr int kLimit = kSums / G;
  const float *x = t.x;
  float *y = t.y;
  const int64_t wide = power_below(kLimit, vectors);
  for (int64_t h = 0; h < height;) {
    const int64_t rows = wide == vectors ? power_below(kLimit / wide, height - h) : 1;
    for (int64_t v = 0; v < vectors;) {
      const int64_t columns = power_below(kLimit, vectors - v);
      t.x = x + h * t.x_row + v * kVector;
      t.y = y + h * t.y_row + v * kVector;
      const TileFunction run = pick_tile<Gradient, G, kLimit, 1, kLimit>(rows, columns);
      for (t.chunk = 0; t.chunk < t.w->chunks; ++t.chunk) run(t);
      v += columns;
    }
    h += rows;
  }
}

// out (+)= bias + weight * x; bias null for none.
void product(const sdt_weight &w, const float *values, const Image &x, const Image &out,
             bool accumulate) {
  Tile t = {&w, values + w.value, w.bias < 0 ? nullptr : values + w.bias,
            x.p, x.row, out.p, out.channel, out.row, accumulate, 0};
  if (w.group == 8) return walk_tiles<false, 8>(t, out.height, out.vectors);
  if (w.group == 4) return walk_tiles<false, 4>(t, out.height, out.vectors);
  walk_tiles<false, 1>(t, out.height, out.vectors);
}

// Panels: some entries by all of a panel's channels stay in registers over a few rows of the image.
template <int G, int Entries>
SDK_INLINE void panel_run(const Tile &t, int64_t panel, int64_t k, int64_t rows, int64_t vectors) {
  const sdt_weight &w = *t.w;
  Vec sum[Entries][G] = {};
  const float *x[Entries], *y[G];
#pragma GCC unroll 8
  for (int e = 0; e < Entries; ++e) x[e] = t.x + w.offset[k + e];
  // A channel that does not exist is its last one: what is summed for it goes nowhere.
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    const int64_t channel = panel * G + g < w.rows ? panel * G + g : w.rows - 1;
    y[g] = t.y + channel * t.y_channel;
  }
  for (int64_t h = 0; h < rows; ++h)
    for (int64_t v = 0; v < vectors; ++v) {
      Vec pixel[Entries];
#pragma GCC unroll 8
      for (int e = 0; e < Entries; ++e) pixel[e] = load(x[e] + h * t.x_row + v * kVector);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        const Vec d = load(y[g] + h * t.y_row + v * kVector);
#pragma GCC unroll 8
        for (int e = 0; e < Entries; ++e) sum[e][g] += pixel[e] * d;
      }
    }
  float *sums = const_cast<float *>(t.value) + k * G * kVector;
#pragma GCC unroll 8
  for (int e = 0; e < Entries; ++e)
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      float *to = sums + (e * G + g) * kVector;
      store(to, load(to) + sum[e][g]);
    }
}

constexpr int64_t kRunVectors = 64;

template <int G>
void walk_panels(Tile t, int64_t height, int64_t vectors) {
  constexpr int kEntries = kManyRegisters ? 24 / G : 8 / G;
  const sdt_weight &w = *t.w;
  const int64_t step = vectors < kRunVectors ? kRunVectors / vectors : 1;
  const float *x = t.x;
  float *y = t.y;
  for (int64_t h = 0; h < height; h += step) {
    const int64_t rows = height - h < step ? height - h : step;
    t.x = x + h * t.x_row;
    t.y = y + h * t.y_row;
    for (int64_t panel = 0; panel < w.panels; ++panel) {
      int64_t k = w.panel_ptr[panel];
      const int64_t end = w.panel_ptr[panel + 1];
      for (; k + kEntries <= end; k += kEntries) panel_run<G, kEntries>(t, panel, k, rows, vectors);
      for (; k < end; ++k) panel_run<G, 1>(t, panel, k, rows, vectors);
    }
    if (t.bias != nullptr)
      for (int64_t c = 0; c < w.rows; ++c) {
        Vec total = {};
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t v = 0; v < vectors; ++v)
            total += load(t.y + c * t.y_channel + r * t.y_row + v * kVector);
        float *to = const_cast<float *>(t.bias) + c * kVector;
        store(to, load(to) + total);
      }
  }
}

// Floats of the sums of a weight's gradients: by value and, last, by channel.
SDK_INLINE int64_t gradient_floats(const sdt_weight &w) {
  return (entries_of(w) * w.group + (w.bias < 0 ? 0 : w.rows)) * kVector;
}

SDK_INLINE void clear(float *p, int64_t floats) {
  for (int64_t i = 0; i < floats; i += kVector) store(p + i, Vec{});
}

// Adds to the sums of the gradients of w, for out = w x and dy the gradient of out.
void add_gradient(const sdt_weight &w, float *sums, const Image &x, const Image &dy) {
  const int64_t values = entries_of(w) * w.group;
  Tile t = {&w, sums, w.bias < 0 ? nullptr : sums + values * kVector,
            x.p, x.row, dy.p, dy.channel, dy.row, false, 0};
  if (w.group == 8) return walk_panels<8>(t, dy.height, dy.vectors);
  if (w.group == 4) return walk_panels<4>(t, dy.height, dy.vectors);
  walk_tiles<true, 1>(t, dy.height, dy.vectors);
}

// `count` vectors, each summed over its lanes.
SDK_INLINE void sum_lanes(const float *from, int64_t count, float *to) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4, from += 4 * kVector)
    lane_sums(load(from), load(from + kVector), load(from + 2 * kVector), load(from + 3 * kVector),
              to + i);
  for (; i < count; ++i, from += kVector) to[i] = lane_sum(load(from));
}

void finish_gradient(const sdt_weight &w, const float *sums, float *gradients) {
  const int64_t values = entries_of(w) * w.group;
  sum_lanes(sums, values, gradients + w.value);
  if (w.bias >= 0) sum_lanes(sums + values * kVector, w.rows, gradients + w.bias);
}

void conv(const Work &work, const sdt_op &op) {
  product(op.w[0], work.job->values, image_of(work, op.x), image_of(work, op.out),
          op.accumulate != 0);
}

void conv_weight(const Work &work, const sdt_op &op) {
  clear(work.scratch, gradient_floats(op.w[0]));
  add_gradient(op.w[0], work.scratch, image_of(work, op.x), image_of(work, op.y));
  finish_gradient(op.w[0], work.scratch, work.job->gradients);
}

}  // namespace
