// Vectors of the instruction set this file is compiled for. Everything has internal linkage: the
// same source is compiled several times, and no copy may be taken for another.
#pragma once

#include <stdint.h>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define SDK_INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int kVector = 16;
#elif defined(__AVX2__)
constexpr int kVector = 8;
#else
constexpr int kVector = 4;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr bool kManyRegisters = true;  // 32, else 16
#else
constexpr bool kManyRegisters = false;
#endif

constexpr int kBytes = kVector * 4;
constexpr int kHalf = kVector / 2;

typedef float Vec __attribute__((vector_size(kBytes)));
typedef int32_t IntVec __attribute__((vector_size(kBytes)));
typedef uint32_t BitVec __attribute__((vector_size(kBytes)));
typedef double Wide __attribute__((vector_size(kBytes)));
typedef float HalfVec __attribute__((vector_size(kBytes / 2)));
typedef float LooseVec __attribute__((vector_size(kBytes), aligned(4), may_alias));
typedef float LooseHalf __attribute__((vector_size(kBytes / 2), aligned(4), may_alias));

SDK_INLINE Vec load(const float *p) { return *reinterpret_cast<const LooseVec *>(p); }
SDK_INLINE void store(float *p, Vec v) { *reinterpret_cast<LooseVec *>(p) = v; }
SDK_INLINE Vec splat(float s) { return s - Vec{}; }

// Sanitizers do not see what the processor's masked loads and stores touch: there they are loops.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SDK_UNMASKED 1
#endif

// The first n lanes, 0 < n <= kVector, the others zero; and the store of as many.
#if defined(SDK_UNMASKED)
SDK_INLINE Vec load(const float *p, int64_t n) {
  Vec v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
SDK_INLINE void store(float *p, Vec v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}
#elif defined(__AVX512F__)
SDK_INLINE Vec load(const float *p, int64_t n) {
  return (Vec)_mm512_maskz_loadu_ps((__mmask16)(0xffffu >> (16 - n)), p);
}
SDK_INLINE void store(float *p, Vec v, int64_t n) {
  _mm512_mask_storeu_ps(p, (__mmask16)(0xffffu >> (16 - n)), (__m512)v);
}
#elif defined(__AVX2__)
SDK_INLINE __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
SDK_INLINE Vec load(const float *p, int64_t n) {
  return (Vec)_mm256_maskload_ps(p, first_lanes(n));
}
// A whole store, where it is one, can be forwarded to the next load; a masked one cannot.
SDK_INLINE void store(float *p, Vec v, int64_t n) {
  if (n == kVector) return store(p, v);
  _mm256_maskstore_ps(p, first_lanes(n), (__m256)v);
}
#else
SDK_INLINE Vec load(const float *p, int64_t n) {
  if (n == kVector) return load(p);
  Vec v = {p[0]};
  if (n > 1) v[1] = p[1];
  if (n > 2) v[2] = p[2];
  return v;
}
SDK_INLINE void store(float *p, Vec v, int64_t n) {
  if (n == kVector) return store(p, v);
  p[0] = v[0];
  if (n > 1) p[1] = v[1];
  if (n > 2) p[2] = v[2];
}
#endif

// IEEE binary16 in memory: 11 bits of precision, up to 65504. Arithmetic is in float.
struct Half {
  uint16_t bits;
};

#if defined(__AVX512F__)
#define SDK_HAS_HALF 1
SDK_INLINE Vec load(const Half *p) {
  return (Vec)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i *)p));
}
SDK_INLINE void store(Half *p, Vec v) {
  _mm256_storeu_si256((__m256i *)p, _mm512_maskz_cvtps_ph(0xffff, (__m512)v, 0));
}
#elif defined(__F16C__) || defined(__aarch64__)
#define SDK_HAS_HALF 1
SDK_INLINE Vec load(const Half *p) {
#if defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
  return (Vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
#endif
}
SDK_INLINE void store(Half *p, Vec v) {
#if defined(__F16C__)
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, 0));
#else
  vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
#endif
}
#endif

#if defined(__AVX512F__) && !defined(SDK_UNMASKED)
SDK_INLINE Vec load(const Half *p, int64_t n) {
  const __mmask16 lanes = (__mmask16)(0xffffu >> (16 - n));
  return (Vec)_mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(lanes, p));
}
SDK_INLINE void store(Half *p, Vec v, int64_t n) {
  const __mmask16 lanes = (__mmask16)(0xffffu >> (16 - n));
  _mm256_mask_storeu_epi16(p, lanes, _mm512_maskz_cvtps_ph(0xffff, (__m512)v, 0));
}
#elif defined(SDK_HAS_HALF)
SDK_INLINE Vec load(const Half *p, int64_t n) {
  if (n == kVector) return load(p);
  Half part[kVector] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  return load(part);
}
SDK_INLINE void store(Half *p, Vec v, int64_t n) {
  if (n == kVector) return store(p, v);
  Half part[kVector];
  store(part, v);
  for (int64_t i = 0; i < n; ++i) p[i] = part[i];
}
#endif

// The weights of one entry for `Count` output channels, each as a vector of equal lanes. NEON
// multiplies by a lane of a register: four weights a load, and no registers for the copies.
template <int Count>
struct Weights {
#if defined(__aarch64__)
  static constexpr int kQuads = Count / 4;
  Vec quad[kQuads > 0 ? kQuads : 1];
  const float *p;
  SDK_INLINE explicit Weights(const float *from) : p(from) {
    for (int i = 0; i < kQuads; ++i) quad[i] = load(from + 4 * i);
  }
  SDK_INLINE Vec operator[](int g) const { return splat(kQuads > 0 ? quad[g / 4][g % 4] : p[g]); }
#else
  const float *p;
  SDK_INLINE explicit Weights(const float *from) : p(from) {}
  SDK_INLINE Vec operator[](int g) const { return splat(p[g]); }
#endif
};

SDK_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

SDK_INLINE float lane_sum(Vec v) {
#if defined(__aarch64__)
  return vaddvq_f32((float32x4_t)v);
#else
  float s[kVector];
  store(s, v);
  for (int width = kVector / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) s[i] += s[i + width];
  return s[0];
#endif
}

SDK_INLINE float lane_max(Vec v) {
#if defined(__aarch64__)
  return vmaxvq_f32((float32x4_t)v);
#else
  float m = v[0];
  for (int i = 1; i < kVector; ++i) m = v[i] > m ? v[i] : m;
  return m;
#endif
}

SDK_INLINE Vec square_root(Vec v) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE2__)
  return (Vec)_mm_sqrt_ps((__m128)v);
#elif defined(__aarch64__)
  return (Vec)vsqrtq_f32((float32x4_t)v);
#else
  for (int i = 0; i < kVector; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// e^x to 2 units in the last place for -87.33 <= x <= 88.37; 0 below, up to infinity above, NaN for
// NaN. x = n ln 2 + r with |r| <= ln 2 / 2, the polynomial is a weighted minimax fit of
// (e^r - 1 - r) / r^2 with relative error 3e-9.
SDK_INLINE Vec exponential(Vec x) {
  const float low = -87.33f;
#if defined(__AVX512F__)
  // Of minimum and maximum the second operand wins when one is a NaN.
  const __m512 above = _mm512_maskz_max_ps(0xffff, _mm512_set1_ps(-100.0f), (__m512)x);
  const Vec inside = (Vec)_mm512_maskz_min_ps(0xffff, _mm512_set1_ps(100.0f), above);
  const Vec n = (Vec)_mm512_maskz_roundscale_ps(0xffff, (__m512)(inside * 1.44269504f), 8);
#else
  const float high = 88.37f, round = 12582912.0f;  // 1.5 * 2^23
  const Vec inside = x < low ? splat(low) : (x > high ? splat(high) : x);
  const Vec shifted = inside * 1.44269504f + round;
  const Vec n = shifted - round;
#endif
  const Vec r = (inside - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec q = splat(0.001381454f);
  q = q * r + 0.008368745f;
  q = q * r + 0.04166839f;
  q = q * r + 0.16666521f;
  q = q * r + 0.49999994f;
  const Vec p = (q * r) * r + r + 1.0f;
#if defined(__AVX512F__)
  const __mmask16 kept = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(low), _CMP_NLT_UQ);
  return (Vec)_mm512_maskz_scalef_ps(kept, (__m512)p, (__m512)n);
#else
  // The low bits of `shifted` are n; as an exponent they make 2^n.
  const BitVec power = (((BitVec)shifted) + 127u) << 23;
  const Vec y = p * (Vec)power;
  const Vec bounded = x > high ? splat(__builtin_inff()) : y;
  return x < low ? Vec{} : bounded;
#endif
}

// 2^t for |t| <= 126, to 2 units in the last place: a power of two times a minimax polynomial
// (relative error 9e-8). A multiply-add where `exponential` needs two, and no cases; NaN for NaN.
SDK_INLINE Vec power_of_two(Vec t) {
#if defined(__AVX512F__)
  const __m512 n = _mm512_maskz_roundscale_ps(0xffff, (__m512)t, 8);
#else
  const float round = 12582912.0f;  // 1.5 * 2^23
  const Vec shifted = t + round;
  const Vec n = shifted - round;
#endif
  const Vec f = t - (Vec)n;
  Vec p = splat(0.0013264727f);
  p = p * f + 0.009671513f;
  p = p * f + 0.055507336f;
  p = p * f + 0.24022242f;
  p = p * f + 0.693147f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_scalef_ps(0xffff, (__m512)p, n);
#else
  const BitVec power = (((BitVec)shifted) + 127u) << 23;
  return p * (Vec)power;
#endif
}

constexpr float kLog2E = 1.44269504f;

#if defined(__AVX512F__)
// x / (1 + e^-x) to one part in 10,000: enough for what is stored in 11 bits.
SDK_INLINE Vec rough_silu(Vec x) {
  const __m512 t =
      _mm512_maskz_min_ps(0xffff, _mm512_set1_ps(126.0f), (__m512)(x * -kLog2E));
  const __m512 n = _mm512_maskz_roundscale_ps(0xffff, t, 8);
  const Vec f = (Vec)t - (Vec)n;
  Vec p = splat(0.009582853f);
  p = p * f + 0.055906426f;
  p = p * f + 0.240241f;
  p = p * f + 0.6931242f;
  p = p * f + 1.0f;
  const Vec sum = 1.0f + (Vec)_mm512_maskz_scalef_ps(0xffff, (__m512)p, n);
  return x * (Vec)_mm512_maskz_rcp14_ps(0xffff, (__m512)sum);
}
#endif

// x / (1 + e^-x) to 5 + |x| / 2 units in the last place for x >= -87, 1e-36 |x| at most below; NaN
// for NaN.
SDK_INLINE Vec silu(Vec x) {
  const Vec scaled = x * -kLog2E;
#if defined(__AVX512F__)
  // 1 <= the sum <= 2^126; one step of Newton takes the reciprocal from 14 to 28 bits.
  const Vec t = (Vec)_mm512_maskz_min_ps(0xffff, _mm512_set1_ps(126.0f), (__m512)scaled);
  const Vec sum = 1.0f + power_of_two(t);
  const Vec guess = (Vec)_mm512_maskz_rcp14_ps(0xffff, (__m512)sum);
  return x * (guess * (1.0f - sum * guess) + guess);
#else
  const Vec below = scaled > 126.0f ? splat(126.0f) : scaled;
  return x / (1.0f + power_of_two(below < -126.0f ? splat(-126.0f) : below));
#endif
}

}  // namespace
