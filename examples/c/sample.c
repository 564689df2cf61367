/* Draws images from a model and writes them as one PGM or PPM picture, side by side.
 *
 *     sample MODEL.sddpm OUT.pgm [COUNT [SEED [SAMPLER]]]
 */
#include <stdio.h>
#include <stdlib.h>

#include "sparse_ddpm.h"

static int show(void *user, const sddpm_progress *now) {
  (void)user;
  fprintf(stderr, "\rstep %d of %d", (int)now->step, (int)now->steps);
  if (now->step == now->steps) fputc('\n', stderr);
  return 0; /* anything else would stop */
}

static int failed(const char *what, int status) {
  fprintf(stderr, "%s: %s (%s)\n", what, sddpm_error_text(status), sddpm_last_error());
  return 1;
}

int main(int argc, char **argv) {
  const uint64_t count = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
  const uint64_t seed = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;
  const char *sampler = argc > 5 ? argv[5] : NULL;
  if (argc < 3 || count < 1 || count > 4096) {
    fprintf(stderr, "usage: %s MODEL.sddpm OUT.pgm [COUNT [SEED [SAMPLER]]]\n", argv[0]);
    return 2;
  }

  sddpm_model *model;
  int status = sddpm_open(argv[1], NULL, &model);
  if (status != SDDPM_OK) return failed(argv[1], status);

  sddpm_info info = {0};
  info.size = sizeof info;
  sddpm_get_info(model, &info);
  const size_t channels = (size_t)info.channels, line = (size_t)info.width * channels;
  const size_t image = (size_t)info.height * line;
  uint8_t *pixels = malloc((size_t)count * image);
  FILE *file = channels == 1 || channels == 3 ? fopen(argv[2], "wb") : NULL;
  if (pixels == NULL || file == NULL) {
    fprintf(stderr, "%s: cannot be written, or the images are neither grey nor colour\n", argv[2]);
    return 1;
  }

  status = sddpm_sample_uint8(model, sampler, seed, 0, count, pixels, show, NULL);
  if (status != SDDPM_OK) return failed("sampling", status);

  fprintf(file, "P%d\n%d %d\n255\n", channels == 1 ? 5 : 6, (int)(info.width * (int)count),
          (int)info.height);
  for (int row = 0; row < info.height; ++row)
    for (uint64_t i = 0; i < count; ++i)
      fwrite(pixels + (size_t)i * image + (size_t)row * line, 1, line, file);
  const int bad = ferror(file) | fclose(file);
  free(pixels);
  sddpm_close(model);
  return bad != 0;
}
