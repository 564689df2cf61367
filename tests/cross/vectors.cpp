// Checks vec.h for the instruction set this is compiled for: every function against scalar code,
// and the accuracy that it states for e^x and SiLU, over every STRIDE-th float there is.
//
//     vectors STRIDE      exit status 0: all is well, 1: a report on stderr, 77: not this machine
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vec.h"

namespace {

constexpr double kUlp = 1.0 / (1 << 23);
int mistakes = 0;

void check(bool good, const char *what, double at, double got, double wanted) {
  if (good || ++mistakes > 20) return;
  fprintf(stderr, "%s at %.9g: expected %.17g, got %.9g\n", what, at, wanted, got);
}

// The distance between two neighbouring floats at x.
double ulp(double x) {
  const int exponent = x == 0.0 ? -126 : ilogb(x);
  return ldexp(1.0, (exponent < -126 ? -126 : exponent) - 23);
}

float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

double most_exponential = 0.0, most_silu = 0.0;

void check_exponential(float x, float y) {
  const double wanted = exp(static_cast<double>(x));
  if (x != x) return check(y != y, "e^x", x, y, wanted);
  if (x < -87.33f) return check(y == 0.0f, "e^x", x, y, 0.0);
  if (x > 88.37f) return check(y >= 2.38e38f, "e^x", x, y, wanted);
  const double error = fabs(y - wanted) / ulp(wanted);
  if (error > most_exponential) most_exponential = error;
  check(error <= 2.0, "e^x", x, y, wanted);
}

void check_silu(float x, float y) {
  const double wide = x, wanted = wide / (1.0 + exp(-wide));
  if (x != x) return check(y != y, "SiLU", x, y, wanted);
  if (isinf(x)) return;
  const double unit = (fabs(wide) > 1.0 ? fabs(wide) : 1.0) / 4.0 * kUlp;
  const double error = fabs(y - wanted) / unit;
  if (error > most_silu) most_silu = error;
  check(error <= 5.0, "SiLU", x, y, wanted);
}

void sweep(uint64_t stride) {
  alignas(64) float x[kVector], e[kVector], s[kVector];
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32);) {
    for (int i = 0; i < kVector; ++i, bits += stride) x[i] = from_bits((uint32_t)bits);
    store(e, exponential(load(x)));
    store(s, silu(load(x)));
    for (int i = 0; i < kVector; ++i) {
      check_exponential(x[i], e[i]);
      check_silu(x[i], s[i]);
    }
  }
}

template <int Count>
void check_weights(const float *from) {
  const Weights<Count> weights(from);
#pragma GCC unroll 16
  for (int g = 0; g < Count; ++g)
    for (int i = 0; i < kVector; ++i)
      check(weights[g][i] == from[g], "Weights", g, weights[g][i], from[g]);
}

void check_functions() {
  float from[3 * kVector + 16], to[3 * kVector];
  for (int i = 0; i < 3 * kVector + 16; ++i) from[i] = (float)(i * 37 % 101) - 50.5f;
  for (int at = 0; at < kVector; ++at)
    for (int n = 1; n <= kVector; ++n) {
      const Vec v = load(from + at, n);
      for (int i = 0; i < kVector; ++i)
        check(v[i] == (i < n ? from[at + i] : 0.0f), "load", n, v[i], from[at + i]);
      for (int i = 0; i < 3 * kVector; ++i) to[i] = 7.0f;
      store(to + at, load(from + at), n);
      for (int i = 0; i < 3 * kVector; ++i) {
        const float wanted = i >= at && i < at + n ? from[i] : 7.0f;
        check(to[i] == wanted, "store", n, to[i], wanted);
      }
    }
  for (int at = 0; at < kVector; ++at) {
    const Vec a = load(from + at), b = load(from + at + 5);
    double sum = 0.0, most = -1e9;
    for (int i = 0; i < kVector; ++i) {
      sum += a[i];
      most = a[i] > most ? a[i] : most;
      const float more = a[i] > b[i] ? a[i] : b[i];
      check(larger(a, b)[i] == more, "larger", i, larger(a, b)[i], more);
      check(splat(a[i])[kVector - 1] == a[i], "splat", i, splat(a[i])[kVector - 1], a[i]);
      const float root = sqrtf(fabsf(a[i]));
      const float got = square_root(splat(fabsf(a[i])))[i];
      check(got == root, "square_root", a[i], got, root);
    }
    check(lane_sum(a) == sum, "lane_sum", at, lane_sum(a), sum);  // of halves: exact
    check(lane_max(a) == most, "lane_max", at, lane_max(a), most);
  }
  check_weights<1>(from);
  check_weights<2>(from);
  check_weights<4>(from);
  check_weights<8>(from);
  check_weights<16>(from);
}

bool this_machine() {
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return true;
#endif
}

}  // namespace

int main(int argc, char **argv) {
  const long stride = argc == 2 ? atol(argv[1]) : 0;
  if (stride < 1) return 2;
  if (!this_machine()) return 77;
  check_functions();
  sweep((uint64_t)stride);
  printf("vectors of %d: e^x to %.3f units in the last place, SiLU to %.3f units\n", kVector,
         most_exponential, most_silu);
  return mistakes > 0 ? 1 : 0;
}
