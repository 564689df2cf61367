/* The CPU engine behind a plain C ABI: arrays and integers, no types of anybody else.
 *
 * One handle holds one planned program: tensors placed in one arena, operations in order, copies
 * of all weights. sdk_run executes a whole denoising step. Nothing is allocated after sdk_create,
 * and no index is checked: the caller has validated its arrays.
 *
 * Activations are channel-major with the batch innermost. Element (n, c, h, w) of a tensor lies at
 *     arena[offset + c * channel_stride + h * row_stride + w * lanes + n]
 * where lanes, the images of one pass, is 1 or a multiple of 16 and the same for all tensors; a step
 * of more images makes several passes. Around each channel's image lie halo rows and
 * columns of zeros, so that a convolution tap is a constant offset; the zeros at the right of one
 * row are those at the left of the next, hence row_stride = (width + halo) * lanes. Each channel
 * has channel_lead floats before its first pixel; whoever writes a tensor writes its halo too.
 * After the last pixel of a channel come at least 15 floats that belong to the same channel.
 */
#ifndef SPARSE_DDPM_ENGINE_H
#define SPARSE_DDPM_ENGINE_H

#include <stdint.h>

#if defined(__GNUC__)
#define SDK_API __attribute__((visibility("default")))
#else
#define SDK_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define SDK_ABI 6

enum sdk_kind {
  SDK_LOAD = 0,             /* out = the step's input, float32 [images, C, H, W] */
  SDK_STORE = 1,            /* the step's output = x */
  SDK_CONV = 2,             /* out = bias + weight * x (+ y) */
  SDK_NORM_ACT = 3,         /* group norm, times a plus b, SiLU if asked (+ y) */
  SDK_CHANNEL_NORM = 4,     /* norm over the channels of each pixel, times a (+ y) */
  SDK_ATTENTION = 5,        /* x is qkv */
  SDK_LINEAR_ATTENTION = 6, /* x is qkv */
  SDK_SPACE_TO_DEPTH = 7,
  SDK_UPSAMPLE = 8,
  SDK_COPY = 9,
  SDK_ADD = 10,             /* out = x + y */
  SDK_LINEAR_CONTEXT = 11,  /* the three steps of an sdk_linear_block, in this order */
  SDK_LINEAR_MERGE = 12,
  SDK_LINEAR_APPLY = 13,
  SDK_KINDS = 14
};

enum sdk_isa { SDK_BASELINE = 0, SDK_AVX2 = 1, SDK_AVX512 = 2, SDK_NEON = 3, SDK_ISAS = 4 };

/* Flags of a program. */
#define SDK_POISON 1  /* fill arena and scratch with NaN before every run */
#define SDK_PROFILE 2 /* keep the time of every operation, see sdk_seconds */
#define SDK_HALF 4    /* store activations as IEEE halves: two bytes for every float of the arena */
#define SDK_BF16 8    /* with SDK_HALF: products of panels of 8 and 16 in bfloat16, see sdk_dot */
#define SDK_BORROW 16 /* read weights where they lie, for as long as the handle lives, see sdk_create */

/* A tensor in the arena; all strides and offsets in floats. channels = 0: absent. */
typedef struct {
  int64_t offset; /* first pixel of the first channel */
  int64_t channel_stride;
  int64_t row_stride;
  int64_t channel_lead;
  int32_t channels, height, width, halo;
} sdk_tensor;

/* A sparse 1x1 convolution inside a block: panels as in sdk_op, but x[offset[k] + pixel] lies in
 * scratch, and bias [panels, group] goes by slot. */
typedef struct {
  int32_t group;
  int64_t panels;
  const int64_t *panel_ptr; /* [panels + 1] */
  const int32_t *offset;    /* [panel_ptr[panels]] in floats */
  const float *value;       /* [panel_ptr[panels], group] */
  const int32_t *slot;      /* [panels, group], a row within its head; -1: padding */
  const float *bias;        /* [panels, group] */
} sdk_weight;

/* A head without its dead rows. Rows of q and k that have weights are numbered within the head;
 * the first `both` rows of q and of k belong to the same channels. Panels of a head follow those of
 * the head before. */
typedef struct {
  int32_t both, q_rows, k_rows, v_rows;
  int32_t q_panels, k_panels, v_panels;
  int32_t context; /* where its context begins in a slot, in numbers (see below) */
} sdk_linear_head;

/* out = norm2(bias + W mix) (+ y), mix = linear attention of q, k, v = Wq n, Wk n, Wv n,
 * n = norm1(x), where norm1 and norm2 are channel norms. The gain of norm1 is folded into the
 * weights. lanes is 1 or a multiple of 16.
 *
 * Pixels go through in blocks, `stride` floats a channel in scratch: `pixels` neighbouring pixels
 * of one image (lanes = 1, stride = pixels, a multiple of 16), or `pixels` pixels of one vector of
 * images (stride = 16 pixels). The image is cut into `chunks` runs of blocks, each with a slot of
 * its own in the arena, from float `context` on, where the context of its pixels is summed:
 * slot_numbers numbers, each one float (lanes = 1, slots rounded up to 16 floats), or one vector of
 * images (slot by slot all vectors of the lanes). In it each head has k_rows + 2 rows of v_rows + 1
 * numbers: sum_m exp(k[d, m]) v[e, m] and, last, sum_m exp(k[d, m]); the row after k_rows, if
 * k_rows < dim_head, is for channels whose k has no weights: sum_m v[e, m]. Merging adds the slots
 * up, in order, into the first one, and turns the rows into those that apply needs. */
typedef struct {
  int32_t heads, dim_head;
  int32_t pixels, stride, chunks;
  int64_t context, slot_numbers;
  double eps; /* of norm1 */
  sdk_weight q, k, v, out;
  const sdk_linear_head *head; /* [heads] */
} sdk_linear_block;

/* One operation. Fields that its kind does not name are ignored.
 *
 * Convolution: panels of `group` output channels (1, 2, 4, 8 or 16) that share their columns.
 * Entry k of panel p, panel_ptr[p] <= k < panel_ptr[p + 1], adds
 *     value[k * group + g] * x[offset[k] + pixel]
 * to output channel slot[p * group + g]; a slot of -1 is padding. Every output channel stands in
 * exactly one slot. a: bias [C] or null; with film >= 0 the bias is row[film ...] of the row that
 * sdk_run is given. With copies > 0 the convolution reads shifted copies of x
 * that it makes: offset[k] is then a column of the weight, (c * size + r) * size + s, size odd, and
 * copies how many there are of each channel: `size`, with columns shifted by s - size / 2, or
 * size * size, with rows shifted by r - size / 2 too (what it reads lies at whole vectors then, as
 * far as rows or images are such). With upsample too, x has half the width and height, and what is
 * copied is every pixel of it twice in each row, and every row twice. Up to 15 floats before the first channel of x are read and
 * dropped: nothing may write them meanwhile.
 *
 * Norms: a (and b) are [C] arrays, or, with film >= 0, a = row[film ...], b = row[film + C ...]
 * of the row that sdk_run is given.
 *
 * Attention, both kinds: a, [2, heads, dim_head, groups] or null, is keys and values of `groups`
 * pixels more, the same for all images.
 *
 * Linear context, merge and apply: the same `block` and x; apply also: out, y, the gain a [channels
 * of out] and the eps of norm2. Out may lie where x does.
 */
typedef struct {
  int32_t kind;
  int32_t silu;
  int32_t groups;
  int32_t heads;
  int32_t dim_head;
  int32_t group;
  int32_t size;
  int32_t copies;
  int32_t upsample;
  int32_t reserved;
  int64_t film;
  double eps;
  sdk_tensor out, x, y;
  const float *a, *b;
  int64_t panels;
  const int64_t *panel_ptr; /* [panels + 1] */
  const int32_t *offset;    /* [panel_ptr[panels]] in floats, or a column */
  const float *value;       /* [panel_ptr[panels], group] */
  const int32_t *slot;      /* [panels, group] */
  const sdk_linear_block *block;
} sdk_op;

typedef struct {
  int32_t abi;     /* SDK_ABI */
  int32_t isa;     /* an sdk_isa that sdk_isas() has, or -1: the widest */
  int32_t threads; /* >= 1, the caller's own thread included */
  int32_t flags;
  int64_t lanes;
  int64_t arena; /* floats */
  int64_t ops;
  const sdk_op *op;
} sdk_program;

typedef struct sdk_engine sdk_engine;

SDK_API int32_t sdk_abi(void);
SDK_API int64_t sdk_op_size(void);
/* Bit i is set when sdk_isa i is compiled in and this machine has it. */
SDK_API uint32_t sdk_isas(void);

/* Whether this machine multiplies bfloat16 in pairs: SDK_BF16 needs it, and SDK_AVX512. */
SDK_API int32_t sdk_dot(void);

/* A handle, or null with a message in error[size]. Copies every array it is given; with SDK_BORROW
 * those that it need not change must stay. Starts threads - 1 threads, which sleep between runs. */
SDK_API sdk_engine *sdk_create(const sdk_program *program, char *error, int64_t size);

/* One step: x and out are contiguous float32 [images, C, H, W], row the step's row of the time table
 * (null when no operation has film >= 0); images >= 1. One caller at a time. In a forked child the handle keeps
 * working on the caller's thread alone, unless the fork happened during a run. */
SDK_API void sdk_run(sdk_engine *engine, const float *x, float *out, const float *row,
                     int64_t images);

/* The arena, for reading the values of the last pass. */
SDK_API const void *sdk_arena(const sdk_engine *engine);
/* The instruction set in use. */
SDK_API int32_t sdk_engine_isa(const sdk_engine *engine);
/* Bytes held outside the arena: weights and scratch. */
SDK_API int64_t sdk_bytes(const sdk_engine *engine);
/* Seconds of the last step by operation, [ops]; zeros without SDK_PROFILE. */
SDK_API void sdk_seconds(const sdk_engine *engine, double *seconds);
/* Ends the threads and frees everything; in a forked child it does nothing. */
SDK_API void sdk_destroy(sdk_engine *engine);

#ifdef __cplusplus
}
#endif
#endif
