#include "native_sample.h"

#include <algorithm>
#include <cmath>

namespace sdk {
namespace {

struct Words {
  uint32_t w[4];
};

// Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
Words philox(Words c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c.w[0], b = uint64_t{0xCD9E8D57} * c.w[2];
    c = {{static_cast<uint32_t>(b >> 32) ^ c.w[1] ^ k0, static_cast<uint32_t>(b),
          static_cast<uint32_t>(a >> 32) ^ c.w[3] ^ k1, static_cast<uint32_t>(a)}};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

void box_muller(uint32_t first, uint32_t second, float *out) {
  constexpr double kPi = 3.141592653589793;
  const double radius = std::sqrt(-2.0 * std::log((first + 0.5) * 0x1p-32));
  const double angle = (second + 0.5) * (kPi * 0x1p-31);
  out[0] = static_cast<float>(radius * std::cos(angle));
  out[1] = static_cast<float>(radius * std::sin(angle));
}

}  // namespace

void normal_noise(uint64_t seed, uint64_t image, uint32_t step, float *out, int64_t floats) {
  const auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int64_t i = 0; i < floats; i += 4) {
    const Words words = philox({{static_cast<uint32_t>(i / 4), step, static_cast<uint32_t>(image),
                                 static_cast<uint32_t>(image >> 32)}},
                               k0, k1);
    float four[4];
    box_muller(words.w[0], words.w[1], four);
    box_muller(words.w[2], words.w[3], four + 2);
    std::copy(four, four + std::min<int64_t>(4, floats - i), out + i);
  }
}

// Each product and each sum is rounded, in this order, as NumPy does it.
void sampler_step(const Coefficients &c, bool clip, const float *n, const float *z, float *x,
                  float *x0, int64_t floats) {
  for (int64_t i = 0; i < floats; ++i) {
    float now = c.q * n[i];
    if (c.p != 0) now += c.p * x[i];
    if (clip) now = std::min(std::max(now, -1.0f), 1.0f);
    float next = c.r * now;
    if (c.s != 0) next += c.s * x[i];
    if (c.w != 0) next += c.w * n[i];
    if (c.u != 0) next += c.u * z[i];
    if (c.v != 0) next += c.v * x0[i];
    x[i] = next;
    x0[i] = now;
  }
}

void to_levels(const float *x, uint8_t *out, int64_t channels, int64_t pixels) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < pixels; ++i) {
      const float level = (x[c * pixels + i] + 1.0f) * 127.5f;  // NaN becomes 0
      out[i * channels + c] =
          static_cast<uint8_t>(std::nearbyintf(std::min(std::max(0.0f, level), 255.0f)));
    }
}

}  // namespace sdk
