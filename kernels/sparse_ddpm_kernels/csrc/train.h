/* Training on the CPU: forward and backward passes of a sparse U-Net, behind a plain C ABI.
 *
 * A pass is a list of operations on tensors. Images go through it in parts of `lanes` images, each
 * part a job with an arena of its own for what the backward pass needs again; threads take jobs,
 * and a job is done by one thread from end to end. Nothing is summed over jobs here, so what a job
 * gives depends neither on the number of threads nor on their timing. Jobs of one run may differ in
 * lanes and instruction set.
 *
 * Activations are channel-major with the images innermost. Element (n, c, h, w) lies at
 *     space[offset + c * channel_stride + h * row_stride + w * lanes + n]
 * with a halo of zeros around each channel's image, which the caller makes (by zeroing the memory
 * once) and nobody writes; the zeros at the right of one row are those at the left of the next.
 * lanes is a multiple of the vectors of the instruction set (sdt_vector).
 *
 * No index is checked, and no array is copied: the caller has validated them and keeps them.
 */
#ifndef SPARSE_DDPM_TRAIN_H
#define SPARSE_DDPM_TRAIN_H

#include <stdint.h>

#if defined(__GNUC__)
#define SDT_API __attribute__((visibility("default")))
#else
#define SDT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define SDT_ABI 1

/* The pixels that linear attention takes at a time; channels in its scratch lie SDT_CHUNK * lanes
 * floats apart, which the offsets of its weights count on. */
#define SDT_CHUNK 16

/* x: what an operation reads; out: what it writes. Backward, x: what the operation read; y: the
 * gradient of what it wrote; out: the gradient of x, to which is added with `accumulate`. */
enum sdt_kind {
  SDT_LOAD = 0,           /* out = the job's images */
  SDT_STORE = 1,          /* the job's result = x */
  SDT_CONV = 2,           /* out (+)= w[0] x; also the gradient of x, with the weight turned */
  SDT_NORM_ACT = 3,       /* group norm, gain a, shift b, FiLM, SiLU (+ y, if it has channels) */
  SDT_CHANNEL_NORM = 4,   /* norm over the channels of each pixel, gain a (+ y) */
  SDT_LINEAR = 5,         /* linear attention between its two 1x1 convolutions: w[0] makes q, w[1]
                             k and those channels of v that are kept, w[2] takes their mix */
  SDT_SOFTMAX = 6,        /* softmax attention; x is q, k and v */
  SDT_SPACE_TO_DEPTH = 7, /* channel 4c + 2i + j = pixels (2h + i, 2w + j) of channel c */
  SDT_UPSAMPLE = 8,       /* every pixel twice in each direction */
  SDT_ADD = 9,            /* out (+)= x */
  SDT_CONV_WEIGHT = 10,   /* gradients of the weight and bias w[0] */
  SDT_NORM_ACT_BACK = 11,
  SDT_CHANNEL_NORM_BACK = 12,
  SDT_LINEAR_BACK = 13, /* w[3], w[4], w[5]: w[0], w[1], w[2] turned */
  SDT_SOFTMAX_BACK = 14,
  SDT_SPACE_TO_DEPTH_BACK = 15,
  SDT_UPSAMPLE_BACK = 16,
  SDT_KINDS = 17
};

/* The instruction sets have the numbers of sdk_isa. */

/* channels = 0: absent. space 0 is the job's arena, 1 the thread's workspace. */
typedef struct {
  int64_t offset; /* first pixel of the first channel, in floats */
  int64_t channel_stride;
  int64_t row_stride;
  int32_t channels, height, width, space;
} sdt_tensor;

/* Panels of `group` neighbouring output channels (1, 4 or 8) that share their columns. Entry k of
 * panel p adds values[value + k * group + g] * x[offset[k] + pixel] to channel p * group + g;
 * channels from `rows` on do not exist. The columns may be cut into chunks whose pixels fit the
 * nearest cache: segment c * panels + p holds the entries of panel p in chunk c. More than one chunk
 * only with a group of 1. */
typedef struct {
  int32_t group, rows;
  int64_t panels, chunks;
  const int64_t *panel_ptr; /* [chunks * panels + 1] */
  const int32_t *offset;    /* [panel_ptr[chunks * panels]] */
  int64_t value;            /* of its first value among the job's values, and gradients */
  int64_t bias;             /* of its bias [rows] there; -1: none */
} sdt_weight;

typedef struct {
  int32_t kind, accumulate;
  int32_t groups, heads, dim_head, reserved;
  double eps;
  int64_t film;   /* row of the job's film where its scales begin, its shifts follow; -1: none */
  int64_t a, b;   /* of gain and shift among the values, and of their gradients */
  int64_t saved;  /* float of the arena where it keeps what the backward pass needs */
  const int32_t *kept; /* [heads + 1]: where each head's kept channels of v begin, and how many
                          there are; others are 0, or nobody reads their mix */
  sdt_tensor out, x, y;
  sdt_weight w[6];
} sdt_op;

typedef struct {
  const sdt_op *op; /* [ops] */
  int64_t ops, lanes;
  int32_t isa, reserved;
  /* By thread, what it works in: space 1, and scratch from float `scratch` on. */
  float *const *workspace;
  int64_t scratch;
  float *arena;
  const float *values;   /* of all jobs */
  const float *film;     /* [rows, lanes] */
  const float *in;       /* [images, C, H, W]: images, or the gradient of the result */
  float *out;            /* [images, C, H, W]: the result */
  float *film_gradient;  /* [rows, lanes] */
  float *gradients;      /* as values; each that an operation names is overwritten */
  int64_t images;        /* <= lanes */
} sdt_job;

/* A parameter and its part of the values. Value i is dense[index[i]], 0 where index[i] < 0;
 * without index it is dense[i]. Standardised, each row's values that have an index are brought to
 * mean 0 and variance 1 (biased, plus eps), as are their gradients backward. */
typedef struct {
  const float *dense;
  float *gradient; /* as dense; written at the indices only */
  const int32_t *index;
  int64_t count, value;
  int64_t rows, row_size; /* of dense */
  double eps;             /* < 0: not standardised */
  double *moments;        /* [rows, 2]: mean and 1 / standard deviation; null if not */
} sdt_parameter;

SDT_API int32_t sdt_abi(void);
SDT_API int64_t sdt_op_size(void);
SDT_API int64_t sdt_job_size(void);
/* Bit i is set when instruction set i is compiled in and this machine has it. */
SDT_API uint32_t sdt_isas(void);
/* Floats of a vector of that instruction set. */
SDT_API int32_t sdt_vector(int32_t isa);
/* Floats of scratch that an operation needs. */
SDT_API int64_t sdt_scratch(int32_t isa, const sdt_op *op, int64_t lanes);

/* All operations of each job, on `threads` threads (fewer when there are fewer jobs): thread t does
 * jobs t, t + threads, ... Memory is 64-byte aligned. 0, or -1 when no thread could be started. */
SDT_API int32_t sdt_run(const sdt_job *job, int64_t jobs, int32_t threads);

/* Values of all parameters from what they are dense, and back for the gradients. */
SDT_API void sdt_gather(const sdt_parameter *parameter, int64_t count, float *values);
SDT_API void sdt_scatter(const sdt_parameter *parameter, int64_t count, const float *values,
                         const float *gradients);

#ifdef __cplusplus
}
#endif
#endif
