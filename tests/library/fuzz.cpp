// Opens damaged model files, one after the other, and samples from those that open.
//
//     fuzz --first I --count N --place FILE MODEL...
//
// Input I is a pure function of I and the models. Its number is kept in FILE, so that whoever started
// this knows which one a crash or a hang (20 seconds) belongs to. At the end one line of JSON says how
// often sddpm_open_memory and sddpm_sample returned each status.
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "sparse_ddpm.h"

namespace {

using Content = std::vector<uint8_t>;
using Random = std::mt19937_64;

constexpr size_t kHeader = 64, kEntry = 32;
constexpr unsigned kHang = 20;  // seconds

uint64_t below(Random &random, uint64_t end) { return end > 0 ? random() % end : 0; }
bool chance(Random &random, unsigned percent) { return below(random, 100) < percent; }

template <class T>
T get(const Content &c, size_t at) {
  T value;
  memcpy(&value, &c[at], sizeof value);
  return value;
}
template <class T>
void put(Content &c, size_t at, T value) {
  if (at + sizeof value <= c.size()) memcpy(&c[at], &value, sizeof value);
}

uint32_t crc(const uint8_t *p, size_t size, uint32_t start = 0) {
  static const std::vector<uint32_t> table = [] {
    std::vector<uint32_t> made(256);
    for (uint32_t i = 0; i < 256; ++i) {
      made[i] = i;
      for (int bit = 0; bit < 8; ++bit) made[i] = made[i] >> 1 ^ (made[i] & 1 ? 0xedb88320u : 0);
    }
    return made;
  }();
  uint32_t c = ~start;
  for (size_t i = 0; i < size; ++i) c = c >> 8 ^ table[(c ^ p[i]) & 0xff];
  return ~c;
}

// So that what was damaged reaches the checks behind the checksums.
void fix_checksums(Content &c) {
  if (c.size() < kHeader) return;
  put<uint64_t>(c, 16, c.size());
  const uint32_t sections = get<uint32_t>(c, 24);
  const size_t table = kEntry * size_t{sections};
  if (sections > 64 || c.size() < kHeader + table) return;
  for (size_t at = kHeader; at < kHeader + table; at += kEntry) {
    const auto offset = get<uint64_t>(c, at + 8), bytes = get<uint64_t>(c, at + 16);
    if (offset <= c.size() && bytes <= c.size() - offset)
      put<uint32_t>(c, at + 4, crc(c.data() + offset, bytes));
  }
  put<uint32_t>(c, 28, 0);
  put<uint32_t>(c, 28, crc(c.data(), kHeader + table));
}

// A place in the header, its table, or in one of the sections, small ones as often as large ones.
size_t place(const Content &c, Random &random) {
  if (c.size() <= kHeader) return below(random, c.size());
  const uint64_t sections = std::min<uint64_t>(get<uint32_t>(c, 24), (c.size() - kHeader) / kEntry);
  if (sections == 0 || chance(random, 4)) return below(random, kHeader + sections * kEntry);
  // Plans hold most of what is to be checked.
  for (int tries = 0; tries < 8; ++tries) {
    const size_t at = kHeader + kEntry * below(random, sections);
    const auto offset = get<uint64_t>(c, at + 8), bytes = get<uint64_t>(c, at + 16);
    if (get<uint32_t>(c, at) != 4 && chance(random, 60)) continue;
    if (bytes > 0 && offset < c.size()) return offset + below(random, std::min(bytes, c.size() - offset));
  }
  return below(random, c.size());
}

uint64_t number(Random &random) {
  static const uint64_t known[] = {0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 63, 64, 127, 128, 255,
                                   256, 1023, 4096, 65535, 65536, 1u << 20, 0x7fffffff, 0x80000000,
                                   0xffffffff, uint64_t{1} << 32, uint64_t{1} << 40,
                                   uint64_t{1} << 61, uint64_t{1} << 62, INT64_MAX,
                                   uint64_t{1} << 63, 0x7f800000, 0x7fc00000, 0x7ff0000000000000};
  const uint64_t value = known[below(random, sizeof known / sizeof *known)];
  return chance(random, 25) ? 0 - value : value;
}

void damage(Content &c, Random &random) {
  if (c.empty()) return;
  const size_t at = place(c, random), word = at / 4 * 4, line = at / 8 * 8;
  switch (below(random, 15)) {
    case 0: c[at] ^= static_cast<uint8_t>(1u << below(random, 8)); break;
    case 1: c[at] = static_cast<uint8_t>(random()); break;
    case 2:
    case 3: put<uint32_t>(c, word, static_cast<uint32_t>(number(random))); break;
    case 4:
    case 5: put<uint64_t>(c, line, number(random)); break;
    case 6:
    case 7:
      if (word + 4 <= c.size()) {
        static const int steps[] = {1, -1, 2, -2, 16, -16, 64, -64, 4, 1000};
        put<uint32_t>(c, word, get<uint32_t>(c, word) + static_cast<uint32_t>(steps[below(random, 10)]));
      }
      break;
    case 8: {  // a piece from somewhere else
      const size_t from = place(c, random) / 8 * 8;
      static const size_t sizes[] = {4, 8, 16, 32, 48, 96, 304, 448};
      const size_t size = std::min({sizes[below(random, 8)], c.size() - line, c.size() - from});
      memmove(&c[line], &c[from], size);
      break;
    }
    case 9: {  // one operation over another, or other records
      static const size_t sizes[] = {32, 96, 304, 448};
      const size_t size = sizes[below(random, 4)];
      const size_t to = line + size * (1 + below(random, 3));
      if (to + size <= c.size()) memmove(&c[to], &c[line], size);
      break;
    }
    case 10:
    case 11: {  // the same field of another operation
      const size_t size = chance(random, 50) ? 4 : 8, to = size == 4 ? word : line;
      const uint64_t away = 304 * (1 + below(random, 12));
      const size_t from = chance(random, 50) ? to + away : to - away;
      if (from < c.size() && from + size <= c.size() && to + size <= c.size())
        memcpy(&c[to], &c[from], size);
      break;
    }
    case 12:
      if (word + 4 <= c.size()) put<uint32_t>(c, word, get<uint32_t>(c, word) * 2);
      break;
    default:
      if (chance(random, 90)) {
        put<uint32_t>(c, word, static_cast<uint32_t>(random()));
      } else if (chance(random, 50)) {
        c.resize(below(random, c.size()));
      } else {
        c.resize(c.size() + below(random, 300));
      }
  }
}

// Memory that ends where the content does.
struct Exact {
  uint8_t *all = nullptr, *data;
  Exact(const Content &c, size_t shift) {
    void *p = nullptr;
    if (posix_memalign(&p, 64, c.size() + shift + (c.empty() ? 1 : 0)) != 0) abort();
    all = static_cast<uint8_t *>(p);
    data = all + shift;
    if (!c.empty()) memcpy(data, c.data(), c.size());
  }
  ~Exact() { free(all); }
  Exact(const Exact &) = delete;
  Exact &operator=(const Exact &) = delete;
};

// Reads what it is shown; stops after two steps if `user` is not null.
int watch(void *user, const sddpm_progress *now) {
  volatile float last = now->state[now->count - 1];
  (void)last;
  return user != nullptr && now->step >= 2;
}

struct Counts {
  uint64_t opened[16] = {}, sampled[16] = {};
};

void run(const std::vector<Content> &models, uint64_t index, Counts &counts) {
  Random random(index * 0x9e3779b97f4a7c15u + 1);
  Content c = models[below(random, models.size())];
  const uint64_t times = 1 + below(random, 4) * below(random, 2);
  for (uint64_t i = 0; i < times; ++i) damage(c, random);
  if (chance(random, 90)) fix_checksums(c);
  const Exact memory(c, chance(random, 10) ? 8 * (1 + below(random, 7)) + below(random, 2) : 0);
  sddpm_options options = {};
  options.size = sizeof options;
  options.flags = chance(random, 20) ? SDDPM_PRIVATE : 0;
  options.threads = chance(random, 10) ? 3 : 1;
  options.memory_limit = 64u << 20;
  options.work_limit = 20'000'000;
  sddpm_model *model = nullptr;
  const int status = sddpm_open_memory(memory.data, c.size(), &options, &model);
  ++counts.opened[status & 15];
  if ((status == SDDPM_OK) != (model != nullptr)) abort();
  if (status != SDDPM_OK) {
    if (*sddpm_last_error() == 0 || *sddpm_error_text(status) == 0) abort();
    return;
  }
  sddpm_info info = {};
  info.size = sizeof info;
  if (sddpm_get_info(model, &info) != SDDPM_OK) abort();
  const uint64_t numbers = uint64_t(info.channels) * uint64_t(info.height) * uint64_t(info.width);
  const uint64_t images = chance(random, 60) ? 1 : chance(random, 50) ? 16 : 1 + below(random, 20);
  const char *name = sddpm_sampler(model, int32_t(below(random, uint64_t(info.samplers))), nullptr);
  if (name == nullptr || numbers * images > (16u << 20)) abort();
  sddpm_metadata(model, "dataset");
  int flag = 0;
  void *const stop = chance(random, 70) ? &flag : nullptr;
  const uint64_t seed = random(), begin = random() >> 1;
  int sampled;
  if (chance(random, 70)) {
    std::vector<float> out(numbers * images);
    sampled = sddpm_sample(model, name, seed, begin, images, out.data(), watch, stop);
  } else {
    std::vector<uint8_t> out(numbers * images);
    sampled = sddpm_sample_uint8(model, name, seed, begin, images, out.data(), watch, stop);
  }
  ++counts.sampled[sampled & 15];
  if (sampled == SDDPM_INTERNAL || sampled == SDDPM_INVALID) abort();
  sddpm_close(model);
}

Content read(const char *path) {
  FILE *file = fopen(path, "rb");
  if (file == nullptr) {
    fprintf(stderr, "fuzz: cannot read %s\n", path);
    exit(2);
  }
  Content content;
  uint8_t part[65536];
  for (size_t n; (n = fread(part, 1, sizeof part, file)) > 0;)
    content.insert(content.end(), part, part + n);
  fclose(file);
  return content;
}

void hang(int) {
  static const char text[] = "fuzz: an input took too long\n";
  if (write(2, text, sizeof text - 1) < 0) _exit(3);
  abort();
}

void print(const char *name, const uint64_t (&counts)[16]) {
  printf("\"%s\": [", name);
  for (int i = 0; i < 12; ++i) printf("%s%llu", i > 0 ? ", " : "", (unsigned long long)counts[i]);
  printf("]");
}

}  // namespace

int main(int argc, char **argv) {
  uint64_t first = 0, count = 1;
  int place = -1;
  std::vector<Content> models;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--first" && i + 1 < argc) {
      first = strtoull(argv[++i], nullptr, 10);
    } else if (name == "--count" && i + 1 < argc) {
      count = strtoull(argv[++i], nullptr, 10);
    } else if (name == "--place" && i + 1 < argc) {
      place = open(argv[++i], O_RDWR | O_CREAT, 0644);
    } else {
      models.push_back(read(argv[i]));
    }
  }
  if (models.empty()) return 2;
  signal(SIGALRM, hang);
  Counts counts;
  for (uint64_t index = first; index < first + count; ++index) {
    if (place >= 0 && pwrite(place, &index, sizeof index, 0) != sizeof index) return 2;
    alarm(kHang);
    run(models, index, counts);
  }
  alarm(0);
  printf("{");
  print("opened", counts.opened);
  printf(", ");
  print("sampled", counts.sampled);
  printf("}\n");
  return 0;
}
