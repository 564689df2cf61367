/* Sampling from a sparse-ddpm model without Python: C99, or C++.
 *
 *     sddpm_model *model;
 *     if (sddpm_open("model.sddpm", NULL, &model) != SDDPM_OK) puts(sddpm_last_error());
 *     sddpm_sample_uint8(model, NULL, seed, 0, 1, pixels, NULL, NULL);
 *     sddpm_close(model);
 *
 * `sparse-ddpm export --what native -o model.sddpm` writes such a file. It is mapped, not read: opened
 * by several processes its weights are in memory once. docs/native.md tells of the format.
 *
 * Every function that may fail returns an sddpm_status. No input makes one crash: a file is checked
 * whole, every number in it, before anything is used. Functions may be called from several threads;
 * two calls of sddpm_sample on one model wait for each other. In a forked child a model keeps working
 * on the caller's thread alone, unless the fork happened during a call.
 */
#ifndef SPARSE_DDPM_H
#define SPARSE_DDPM_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define SDDPM_API __attribute__((visibility("default")))
#else
#define SDDPM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when a program compiled with an older header would no longer work. */
#define SDDPM_ABI 1
/* The version of the file that this library reads. */
#define SDDPM_FILE_VERSION 1

typedef enum sddpm_status {
  SDDPM_OK = 0,
  SDDPM_INVALID = 1,     /* an argument that cannot be used */
  SDDPM_IO = 2,          /* the system cannot open or map the file */
  SDDPM_NOT_A_MODEL = 3, /* another kind of file */
  SDDPM_VERSION = 4,     /* a model of another version of the format */
  SDDPM_DAMAGED = 5,     /* cut short, changed, or contradictory */
  SDDPM_UNSUPPORTED = 6, /* this machine, or this build, cannot run it */
  SDDPM_LIMIT = 7,       /* sound, but needs more memory or work than sddpm_options allow */
  SDDPM_MEMORY = 8,      /* out of memory, or of threads */
  SDDPM_CANCELLED = 9,   /* the callback asked to stop */
  SDDPM_NOT_FINITE = 10, /* the network returned infinity or NaN */
  SDDPM_INTERNAL = 11    /* a mistake of the library */
} sddpm_status;

typedef struct sddpm_model sddpm_model;

/* Keep a copy of the model in private memory, on large pages where the system has them: the file may
 * then be changed, and the memory given to sddpm_open_memory freed. */
#define SDDPM_PRIVATE 1u

/* How to open a model. All zeros but `size` are the defaults, and so is NULL for a pointer to it. */
typedef struct sddpm_options {
  uint32_t size;         /* sizeof(sddpm_options) */
  uint32_t flags;        /* SDDPM_PRIVATE */
  int32_t threads;       /* 1 to 1024, the caller's own included; 0: all cores at hand */
  int32_t zero;          /* 0 */
  uint64_t memory_limit; /* bytes beside the weights; 0: 4 GiB */
  uint64_t work_limit;   /* multiply-adds of one step of up to 16 images; 0: 10^13 */
} sddpm_options;

typedef struct sddpm_info {
  uint32_t size; /* sizeof(sddpm_info), set by the caller */
  int32_t channels, height, width; /* of an image */
  int32_t samplers;
  int32_t threads;
  uint64_t file_bytes;
  uint64_t memory_bytes; /* that sampling takes beside the weights, at most */
  uint64_t work;         /* multiply-adds of one step of one image, about */
} sddpm_info;

/* What a callback sees after every step. */
typedef struct sddpm_progress {
  uint32_t size;
  int32_t step, steps;       /* `step` of `steps` is done, from 1 on */
  uint64_t first, count;     /* images in work, from `first` on */
  const float *state;        /* [count, channels, height, width], until the callback returns */
} sddpm_progress;

/* Returns 0 to go on. It may not call a function on the same model. */
typedef int (*sddpm_callback)(void *user, const sddpm_progress *progress);

/* SDDPM_ABI of the library. */
SDDPM_API uint32_t sddpm_abi(void);
/* What a status means, in one sentence; never NULL. */
SDDPM_API const char *sddpm_error_text(int status);
/* What went wrong in this thread's last call that failed, in detail; never NULL. */
SDDPM_API const char *sddpm_last_error(void);

/* Opens a file. On failure *model is NULL. The file is checked here, once, and read where it lies from
 * then on: whoever writes into it or cuts it short while it is open may end the program. Replace it by
 * renaming another over it, or set SDDPM_PRIVATE. */
SDDPM_API int sddpm_open(const char *path, const sddpm_options *options, sddpm_model **model);
/* Opens the bytes of a file. They must stay until the model is closed; they are copied if they do not
 * begin at a multiple of 64, or if SDDPM_PRIVATE is set. */
SDDPM_API int sddpm_open_memory(const void *bytes, size_t size, const sddpm_options *options,
                                sddpm_model **model);
SDDPM_API int sddpm_get_info(const sddpm_model *model, sddpm_info *info);
/* The name of sampler `index`, such as "ddim-50", and its steps (unless NULL). NULL when there is no
 * such sampler. */
SDDPM_API const char *sddpm_sampler(const sddpm_model *model, int32_t index, int32_t *steps);
/* What the file says about `key`, such as "dataset", or NULL. */
SDDPM_API const char *sddpm_metadata(const sddpm_model *model, const char *key);

/* Images first to first + count - 1 of a seed, in [-1, 1]: out[count, channels, height, width].
 * An image is the same, to rounding, whichever are made with it, and the same as in Python.
 * sampler: a name, or NULL for the first; callback: or NULL. After a failure `out` holds the images
 * that were finished, and anything else in the rest. */
SDDPM_API int sddpm_sample(sddpm_model *model, const char *sampler, uint64_t seed, uint64_t first,
                           uint64_t count, float *out, sddpm_callback callback, void *user);
/* So too, as 0 to 255 and with the channels last: out[count, height, width, channels]. */
SDDPM_API int sddpm_sample_uint8(sddpm_model *model, const char *sampler, uint64_t seed,
                                 uint64_t first, uint64_t count, uint8_t *out,
                                 sddpm_callback callback, void *user);

/* Ends the model's threads and frees what it holds; no other call may be at work on it. NULL is allowed. */
SDDPM_API void sddpm_close(sddpm_model *model);

#ifdef __cplusplus
}
#endif
#endif
