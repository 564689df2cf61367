#include "train.h"

#include <cmath>
#include <system_error>
#include <thread>
#include <vector>

#include "engine.h"
#include "train_kernels.h"

namespace {

const sdt::Kernels *kernels_of(int32_t isa) {
#if defined(SDK_NEON_KERNELS)
  return isa == SDK_NEON ? &sdt::neon_kernels : nullptr;
#else
  if (isa == SDK_BASELINE) return &sdt::baseline_kernels;
#if defined(SDK_X86_KERNELS)
  if (isa == SDK_AVX2) return &sdt::avx2_kernels;
  if (isa == SDK_AVX512) return &sdt::avx512_kernels;
#endif
  return nullptr;
#endif
}

// Sums over the values of each row of a standardised parameter.
struct Row {
  double count = 0.0, first = 0.0, second = 0.0;
};

// Of an index that is one. In 32 bits, which divide several times as fast as 64.
size_t row_of(const sdt_parameter &p, int32_t index) {
  return static_cast<uint32_t>(index) / static_cast<uint32_t>(p.row_size);
}

void standardise(const sdt_parameter &p, float *values) {
  std::vector<Row> rows(static_cast<size_t>(p.rows));
  const auto each = [&](auto f) {
    for (int64_t i = 0; i < p.count; ++i)
      if (p.index[i] >= 0) f(rows[row_of(p, p.index[i])], i);
  };
  each([&](Row &row, int64_t i) {
    row.count += 1.0;
    row.first += p.dense[p.index[i]];
  });
  for (Row &row : rows) row.first /= row.count > 0.0 ? row.count : 1.0;
  each([&](Row &row, int64_t i) {
    const double d = p.dense[p.index[i]] - row.first;
    row.second += d * d;
  });
  for (int64_t r = 0; r < p.rows; ++r) {
    const Row &row = rows[static_cast<size_t>(r)];
    const double count = row.count > 0.0 ? row.count : 1.0;
    p.moments[2 * r] = row.first;
    p.moments[2 * r + 1] = 1.0 / std::sqrt(row.second / count + p.eps);
  }
  for (int64_t i = 0; i < p.count; ++i) {
    const int32_t index = p.index[i];
    const double *m = p.moments + 2 * (index < 0 ? 0 : row_of(p, index));
    values[i] = index < 0 ? 0.0f : static_cast<float>((p.dense[index] - m[0]) * m[1]);
  }
}

// With v = (w - mean) / deviation: dw = (dv - mean(dv) - v mean(dv v)) / deviation.
void standardise_back(const sdt_parameter &p, const float *values, const float *gradients) {
  std::vector<Row> rows(static_cast<size_t>(p.rows));
  for (int64_t i = 0; i < p.count; ++i) {
    if (p.index[i] < 0) continue;
    Row &row = rows[row_of(p, p.index[i])];
    row.count += 1.0;
    row.first += gradients[i];
    row.second += static_cast<double>(gradients[i]) * values[i];
  }
  for (int64_t i = 0; i < p.count; ++i) {
    if (p.index[i] < 0) continue;
    const size_t r = row_of(p, p.index[i]);
    const Row &row = rows[r];
    const double d = gradients[i] - (row.first + values[i] * row.second) / row.count;
    p.gradient[p.index[i]] = static_cast<float>(d * p.moments[2 * r + 1]);
  }
}

}  // namespace

extern "C" {

int32_t sdt_abi(void) { return SDT_ABI; }

int64_t sdt_op_size(void) { return sizeof(sdt_op); }

int64_t sdt_job_size(void) { return sizeof(sdt_job); }

uint32_t sdt_isas(void) {
#if defined(SDK_NEON_KERNELS)
  return 1u << SDK_NEON;
#else
  uint32_t isas = 1u << SDK_BASELINE;
#if defined(SDK_X86_KERNELS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (avx2) isas |= 1u << SDK_AVX2;
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    isas |= 1u << SDK_AVX512;
#endif
  return isas;
#endif
}

int32_t sdt_vector(int32_t isa) {
  const sdt::Kernels *kernels = kernels_of(isa);
  return kernels == nullptr ? 0 : kernels->vector;
}

int64_t sdt_scratch(int32_t isa, const sdt_op *op, int64_t lanes) {
  return kernels_of(isa)->scratch(*op, lanes);
}

int32_t sdt_run(const sdt_job *job, int64_t jobs, int32_t threads) {
  const int64_t count = threads < jobs ? threads : jobs;
  const auto work = [&](int64_t thread) {
    for (int64_t i = thread; i < jobs; i += count)
      kernels_of(job[i].isa)->run(job[i], job[i].workspace[thread]);
  };
  // Threads live for a pass only: none waits or spins between passes, and a fork finds none.
  std::vector<std::thread> others;
  int32_t result = 0;
  try {
    for (int64_t thread = 1; thread < count; ++thread) others.emplace_back(work, thread);
    work(0);
  } catch (const std::exception &) {
    result = -1;
  }
  for (std::thread &other : others) other.join();
  return result;
}

void sdt_gather(const sdt_parameter *parameter, int64_t count, float *values) {
  for (int64_t n = 0; n < count; ++n) {
    const sdt_parameter &p = parameter[n];
    float *to = values + p.value;
    if (p.eps >= 0.0) {
      standardise(p, to);
    } else if (p.index == nullptr) {
      for (int64_t i = 0; i < p.count; ++i) to[i] = p.dense[i];
    } else {
      for (int64_t i = 0; i < p.count; ++i) to[i] = p.index[i] < 0 ? 0.0f : p.dense[p.index[i]];
    }
  }
}

void sdt_scatter(const sdt_parameter *parameter, int64_t count, const float *values,
                 const float *gradients) {
  for (int64_t n = 0; n < count; ++n) {
    const sdt_parameter &p = parameter[n];
    const float *from = gradients + p.value;
    if (p.eps >= 0.0) {
      standardise_back(p, values + p.value, from);
    } else if (p.index == nullptr) {
      for (int64_t i = 0; i < p.count; ++i) p.gradient[i] = from[i];
    } else {
      for (int64_t i = 0; i < p.count; ++i)
        if (p.index[i] >= 0) p.gradient[p.index[i]] = from[i];
    }
  }
}

}  // extern "C"
