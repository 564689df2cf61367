// What this machine can do at most: multiply-adds from registers, and bytes from each level of
// memory. Benchmarks print a kernel's share of these.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

#include "engine.h"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Keeps what it is given from being optimised away.
volatile float sink;
// The compiler must not know the factors.
volatile float factor = 0.999f, summand = 0.001f;

constexpr int64_t kCheck = 1 << 20;  // bytes between two looks at the clock
constexpr int kStreams = 8;          // loads or stores of one turn

// Three functions for one instruction set. `chains` independent multiply-adds hide the latency of
// each and, with two factors, fit the registers.
#define SDK_CEILING(name, attribute, lanes, chains)                                            \
  typedef float name##_vec __attribute__((vector_size(4 * (lanes))));                          \
                                                                                               \
  attribute double name##_flops(double seconds) {                                              \
    const float m = factor, b = summand;                                                       \
    const name##_vec times = m - name##_vec{}, plus = b - name##_vec{};                        \
    name##_vec sum[chains];                                                                    \
    for (int i = 0; i < (chains); ++i) sum[i] = (float)i - name##_vec{};                       \
    const auto start = Clock::now();                                                           \
    double elapsed = 0, turns = 0;                                                             \
    do {                                                                                       \
      for (int turn = 0; turn < 2000; ++turn) {                                                \
        _Pragma("GCC unroll 16") for (int i = 0; i < (chains); ++i) sum[i] =                   \
            sum[i] * times + plus;                                                             \
      }                                                                                        \
      turns += 2000;                                                                           \
      elapsed = seconds_since(start);                                                          \
    } while (elapsed < seconds);                                                               \
    for (int i = 1; i < (chains); ++i) sum[0] += sum[i];                                       \
    sink = sum[0][0];                                                                          \
    return turns * 2.0 * (chains) * (lanes) / elapsed;                                         \
  }                                                                                            \
                                                                                               \
  attribute double name##_read(float *data, int64_t floats, double seconds) {                  \
    name##_vec sum[kStreams] = {};                                                             \
    const int64_t passes = kCheck / (4 * floats) + 1;                                          \
    const auto start = Clock::now();                                                           \
    double elapsed = 0, moved = 0;                                                             \
    do {                                                                                       \
      for (int64_t pass = 0; pass < passes; ++pass) {                                          \
        const name##_vec *p = reinterpret_cast<const name##_vec *>(data);                      \
        for (int64_t k = 0; k < floats / (lanes); k += kStreams)                               \
          _Pragma("GCC unroll 8") for (int i = 0; i < kStreams; ++i) sum[i] += p[k + i];       \
        asm volatile("" ::: "memory");                                                         \
      }                                                                                        \
      moved += 4.0 * (double)floats * (double)passes;                                          \
      elapsed = seconds_since(start);                                                          \
    } while (elapsed < seconds);                                                               \
    for (int i = 1; i < kStreams; ++i) sum[0] += sum[i];                                       \
    sink = sum[0][0];                                                                          \
    return moved / elapsed;                                                                    \
  }                                                                                            \
                                                                                               \
  attribute double name##_copy(float *data, int64_t floats, double seconds) {                  \
    const int64_t half = floats / 2;                                                           \
    const int64_t passes = kCheck / (4 * floats) + 1;                                          \
    const auto start = Clock::now();                                                           \
    double elapsed = 0, moved = 0;                                                             \
    do {                                                                                       \
      for (int64_t pass = 0; pass < passes; ++pass) {                                          \
        const name##_vec *from = reinterpret_cast<const name##_vec *>(data);                   \
        name##_vec *to = reinterpret_cast<name##_vec *>(data + half);                          \
        for (int64_t k = 0; k < half / (lanes); k += kStreams)                                 \
          _Pragma("GCC unroll 8") for (int i = 0; i < kStreams; ++i) to[k + i] = from[k + i];  \
        asm volatile("" ::: "memory");                                                         \
      }                                                                                        \
      moved += 4.0 * (double)(2 * half) * (double)passes;                                      \
      elapsed = seconds_since(start);                                                          \
    } while (elapsed < seconds);                                                               \
    sink = data[floats - 1];                                                                   \
    return moved / elapsed;                                                                    \
  }

#if defined(__aarch64__)
SDK_CEILING(baseline, , 4, 16)
#else
SDK_CEILING(baseline, , 4, 12)
#endif
#if defined(SDK_X86_KERNELS)
SDK_CEILING(avx2, __attribute__((target("avx2,fma"))), 8, 12)
SDK_CEILING(avx512, __attribute__((target("avx512f"))), 16, 16)
#endif

struct Ceiling {
  double (*flops)(double seconds);
  double (*read)(float *data, int64_t floats, double seconds);
  double (*copy)(float *data, int64_t floats, double seconds);
};

// The kernels of `isa`; null functions where it is not compiled in or not on this machine.
Ceiling ceiling_of(int32_t isa) {
  if (isa < 0 || isa >= SDK_ISAS || !(sdk_isas() >> isa & 1)) return {};
#if defined(SDK_X86_KERNELS)
  if (isa == SDK_AVX2) return {avx2_flops, avx2_read, avx2_copy};
  if (isa == SDK_AVX512) return {avx512_flops, avx512_read, avx512_copy};
#endif
  return {baseline_flops, baseline_read, baseline_copy};
}

// The sum of what `run` returns on each of `threads` threads.
template <typename Run>
double on_threads(int32_t threads, Run run) {
  std::vector<double> rates(threads, 0.0);
  std::vector<std::thread> others;
  for (int32_t i = 1; i < threads; ++i)
    others.emplace_back([&rates, &run, i] { rates[i] = run(); });
  rates[0] = run();
  for (auto &thread : others) thread.join();
  double sum = 0;
  for (double rate : rates) sum += rate;
  return sum;
}

}  // namespace

extern "C" {

// Multiply-adds of float32 from registers by `threads` threads for `seconds`: FLOP/s of all
// together, a multiplication and its addition as two. 0 when this machine lacks `isa`.
SDK_API double sdk_peak_flops(int32_t isa, int32_t threads, double seconds) {
  const Ceiling ceiling = ceiling_of(isa);
  if (!ceiling.flops || threads < 1) return 0;
  return on_threads(threads, [&] { return ceiling.flops(seconds); });
}

// Each thread reads its own `bytes` again and again (`copy` 0), or copies one half of them to the
// other (`copy` 1): bytes/s of all together, read and written. 0 when this machine lacks `isa` or
// the memory.
SDK_API double sdk_bandwidth(int32_t isa, int32_t threads, int64_t bytes, int32_t copy,
                             double seconds) {
  const Ceiling ceiling = ceiling_of(isa);
  constexpr int64_t kUnit = 2 * kStreams * 64;
  if (!ceiling.read || threads < 1 || bytes < kUnit) return 0;
  return on_threads(threads, [&]() -> double {
    const int64_t size = bytes / kUnit * kUnit;
    float *data = static_cast<float *>(std::aligned_alloc(4096, (size + 4095) / 4096 * 4096));
    if (!data) return 0;
    for (int64_t i = 0; i < size / 4; ++i) data[i] = 1.0f;
    const double rate = (copy ? ceiling.copy : ceiling.read)(data, size / 4, seconds);
    std::free(data);
    return rate;
  });
}
}
