// Products of small matrices in scratch, whose numbers are vectors.
#pragma once

#include "vec.h"

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

}  // namespace
