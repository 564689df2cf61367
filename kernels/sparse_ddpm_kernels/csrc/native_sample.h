// From a seed to images: noise, and one step of a sampler's table.
#pragma once

#include <cstdint>

namespace sdk {

// Standard normal noise of one image, [floats]: Philox4x32-10 and Box-Muller, as
// sparse_ddpm/sampling/noise.py lays down. Step 0 is the initial noise.
void normal_noise(uint64_t seed, uint64_t image, uint32_t step, float *out, int64_t floats);

// The rows p, q, r, s, w, u, v of sparse_ddpm/sampling/table.py.
struct Coefficients {
  float p, q, r, s, w, u, v;
};

// x and x0 of one image to those of the next step; n is the network's output, z noise (read only
// where u is not 0).
void sampler_step(const Coefficients &c, bool clip, const float *n, const float *z, float *x,
                  float *x0, int64_t floats);

// [C, H, W] in [-1, 1] to [H, W, C] in 0 to 255, rounded to the nearest level, ties to even.
void to_levels(const float *x, uint8_t *out, int64_t channels, int64_t pixels);

}  // namespace sdk
