// The library without Python: include/sparse_ddpm.h.
#include "include/sparse_ddpm.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "native_file.h"
#include "native_sample.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace sdk {
namespace {

constexpr int kMostThreads = 1024;
constexpr size_t kAlignment = 64, kHugePage = size_t{2} << 20;
constexpr uint64_t kMemoryLimit = uint64_t{4} << 30, kWorkLimit = 10'000'000'000'000;
constexpr int64_t kBatch = 16;     // images that are made together
constexpr int64_t kFullPass = 13;  // from so many images on a pass of 16 is faster than 13 of one

thread_local char last_error[512] = "";

int fail(int status, const char *what) {
  std::snprintf(last_error, sizeof last_error, "%s", what);
  return status;
}

// What `work` throws becomes a status.
template <class Work>
int guarded(Work work) noexcept {
  try {
    work();
    return SDDPM_OK;
  } catch (const ModelError &error) {
    return fail(error.status, error.what());
  } catch (const std::bad_alloc &) {
    return fail(SDDPM_MEMORY, "out of memory");
  } catch (const std::system_error &error) {
    return fail(SDDPM_MEMORY, error.what());
  } catch (const std::exception &error) {
    return fail(SDDPM_INTERNAL, error.what());
  } catch (...) {
    return fail(SDDPM_INTERNAL, "an unknown exception");
  }
}

[[noreturn]] void invalid(const char *what) { throw ModelError(SDDPM_INVALID, what); }

// The bytes of a model: a mapped file, the caller's memory, or a copy of either.
class Bytes {
 public:
  Bytes() = default;
  Bytes(const Bytes &) = delete;
  Bytes &operator=(const Bytes &) = delete;
  ~Bytes() {
    if (mapped_) munmap(const_cast<uint8_t *>(data_), size_);
    std::free(copy_);
  }

  void map(const char *path) {
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) failed(path);
    struct stat status;
    const bool known = fstat(file, &status) == 0;
    const bool regular = known && S_ISREG(status.st_mode);
    void *at = MAP_FAILED;
    if (regular && status.st_size > 0)
      at = mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    const int reason = errno;
    close(file);
    errno = reason;
    if (known && (!regular || status.st_size == 0))
      throw ModelError(SDDPM_NOT_A_MODEL, std::string(path) + ": not a file, or an empty one");
    if (at == MAP_FAILED) failed(path);
    data_ = static_cast<uint8_t *>(at);
    size_ = static_cast<size_t>(status.st_size);
    mapped_ = true;
  }

  void borrow(const void *bytes, size_t size) {
    data_ = static_cast<const uint8_t *>(bytes);
    size_ = size;
  }

  // Of its own from here on.
  void copy() {
    const size_t rounded = (std::max<size_t>(size_, 1) + kAlignment - 1) / kAlignment * kAlignment;
    void *to = nullptr;
    const size_t alignment = rounded < kHugePage ? kAlignment : kHugePage;
    if (posix_memalign(&to, alignment, rounded) != 0) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment == kHugePage) madvise(to, rounded, MADV_HUGEPAGE);
#endif
    std::memcpy(to, data_, size_);
    if (mapped_) munmap(const_cast<uint8_t *>(data_), size_);
    mapped_ = false;
    copy_ = to;
    data_ = static_cast<const uint8_t *>(to);
  }

  bool aligned() const { return reinterpret_cast<uintptr_t>(data_) % kAlignment == 0; }
  const uint8_t *data() const { return data_; }
  size_t size() const { return size_; }

 private:
  [[noreturn]] static void failed(const char *path) {
    throw ModelError(SDDPM_IO, std::string(path) + ": " + std::generic_category().message(errno));
  }

  const uint8_t *data_ = nullptr;
  size_t size_ = 0;
  bool mapped_ = false;
  void *copy_ = nullptr;
};

struct Destroy {
  void operator()(sdk_engine *engine) const { sdk_destroy(engine); }
};

int cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace sdk

using namespace sdk;

struct sddpm_model {
  Bytes bytes;
  Limits limits;
  Model model;
  std::mutex mutex;
  std::atomic<std::thread::id> owner{};  // of the call that is at work
  std::vector<std::unique_ptr<sdk_engine, Destroy>> engines;  // of each plan, made on first use

  void sample(const char *name, uint64_t seed, uint64_t first, uint64_t count, float *floats,
              uint8_t *levels, sddpm_callback callback, void *user);

 private:
  const NativeSampler &sampler(const char *name) const;
  sdk_engine *engine(int64_t images);
};

namespace sdk {
namespace {

void open_model(const sddpm_options *options, sddpm_model **model, void (*fill)(Bytes &, const void *),
                const void *from, size_t size) {
  sddpm_options given = {};
  if (options != nullptr) {
    if (options->size < sizeof given) invalid("options.size is not sizeof(sddpm_options)");
    std::memcpy(&given, options, sizeof given);
  }
  if (given.threads < 0 || given.threads > kMostThreads) invalid("options.threads is not 0 to 1024");
  if ((given.flags & ~SDDPM_PRIVATE) != 0 || given.zero != 0)
    invalid("options has a flag that this library does not know");
  std::unique_ptr<sddpm_model> made(new sddpm_model);
  if (fill != nullptr) {
    fill(made->bytes, from);
  } else {
    made->bytes.borrow(from, size);
  }
  if (!made->bytes.aligned() || (given.flags & SDDPM_PRIVATE) != 0) made->bytes.copy();
  made->limits.threads = given.threads > 0 ? given.threads : std::min(cores(), kMostThreads);
  made->limits.memory =
      static_cast<double>(given.memory_limit > 0 ? given.memory_limit : kMemoryLimit);
  made->limits.work = static_cast<double>(given.work_limit > 0 ? given.work_limit : kWorkLimit);
  made->model = read_model(made->bytes.data(), made->bytes.size(), made->limits);
  made->engines.resize(made->model.plans.size());
  *model = made.release();
}

}  // namespace
}  // namespace sdk

const NativeSampler &sddpm_model::sampler(const char *name) const {
  if (name == nullptr) return model.samplers.front();
  for (const NativeSampler &one : model.samplers)
    if (one.name == name) return one;
  std::string text = "sampler: expected one of";
  for (const NativeSampler &one : model.samplers) text += " " + one.name;
  throw ModelError(SDDPM_INVALID, text + ", got " + name);
}

// The one whose passes suit so many images, of those that the file has.
sdk_engine *sddpm_model::engine(int64_t images) {
  size_t best = 0;
  for (size_t i = 0; i < model.plans.size(); ++i)
    if ((model.plans[i].lanes > 1) == (images >= kFullPass)) best = i;
  if (engines[best] == nullptr) {
    const Plan &plan = model.plans[best];
    const sdk_program program = {SDK_ABI,
                                 -1,
                                 limits.threads,
                                 SDK_BORROW,
                                 plan.lanes,
                                 plan.arena,
                                 static_cast<int64_t>(plan.operations.size()),
                                 plan.operations.data()};
    char error[256] = "";
    engines[best].reset(sdk_create(&program, error, sizeof error));
    if (engines[best] == nullptr) throw ModelError(SDDPM_MEMORY, error);
  }
  return engines[best].get();
}

void sddpm_model::sample(const char *name, uint64_t seed, uint64_t first, uint64_t count,
                         float *floats, uint8_t *levels, sddpm_callback callback, void *user) {
  if (owner.load() == std::this_thread::get_id()) invalid("a callback calls its own model");
  const std::lock_guard<std::mutex> lock(mutex);
  struct Owned {
    std::atomic<std::thread::id> &owner;
    explicit Owned(std::atomic<std::thread::id> &o) : owner(o) { owner = std::this_thread::get_id(); }
    ~Owned() { owner = std::thread::id(); }
  } owned(owner);
  const NativeSampler &table = sampler(name);
  const int64_t size = model.floats();
  if (count > 0 && first > UINT64_MAX - (count - 1)) invalid("first + count is larger than 2^64");
  if (count > PTRDIFF_MAX / sizeof(float) / static_cast<uint64_t>(size))
    invalid("count is larger than any memory");
  const auto most = static_cast<size_t>(size) * std::min<uint64_t>(count, kBatch);
  std::vector<float> x(most), n(most), x0(most), z(static_cast<size_t>(size));
  for (uint64_t done = 0; done < count;) {
    const auto images = static_cast<int64_t>(std::min<uint64_t>(kBatch, count - done));
    sdk_engine *run = engine(images);
    for (int64_t i = 0; i < images; ++i)
      normal_noise(seed, first + done + static_cast<uint64_t>(i), 0, &x[static_cast<size_t>(i * size)],
                   size);
    std::copy_n(x.begin(), images * size, x0.begin());
    for (int32_t step = 0; step < table.steps; ++step) {
      const float *row = model.film > 0 ? table.film + step * model.film : nullptr;
      sdk_run(run, x.data(), n.data(), row, images);
      if (!std::all_of(n.begin(), n.begin() + images * size, [](float v) { return std::isfinite(v); }))
        throw ModelError(SDDPM_NOT_FINITE,
                         "the network returned infinity or NaN in step " + std::to_string(step));
      const double *c = table.coefficients + 7 * int64_t{step};
      Coefficients now;
      float *const to[] = {&now.p, &now.q, &now.r, &now.s, &now.w, &now.u, &now.v};
      for (int i = 0; i < 7; ++i) *to[i] = static_cast<float>(c[i]);
      for (int64_t i = 0; i < images; ++i) {
        const auto at = static_cast<size_t>(i * size);
        if (now.u != 0)
          normal_noise(seed, first + done + static_cast<uint64_t>(i),
                       static_cast<uint32_t>(step) + 1, z.data(), size);
        sampler_step(now, table.clip, &n[at], z.data(), &x[at], &x0[at], size);
      }
      const sddpm_progress progress = {sizeof(sddpm_progress), step + 1, table.steps, first + done,
                                       static_cast<uint64_t>(images), x.data()};
      if (callback != nullptr && callback(user, &progress) != 0)
        throw ModelError(SDDPM_CANCELLED, "the callback asked to stop");
    }
    for (int64_t i = 0; i < images; ++i) {
      const float *image = &x[static_cast<size_t>(i * size)];
      const int64_t at = (static_cast<int64_t>(done) + i) * size;
      if (floats != nullptr) std::copy_n(image, size, floats + at);
      if (levels != nullptr)
        to_levels(image, levels + at, model.channels, int64_t{model.height} * model.width);
    }
    done += static_cast<uint64_t>(images);
  }
}

uint32_t sddpm_abi(void) { return SDDPM_ABI; }

const char *sddpm_error_text(int status) {
  switch (status) {
    case SDDPM_OK: return "no error";
    case SDDPM_INVALID: return "an argument cannot be used";
    case SDDPM_IO: return "the file cannot be opened or mapped";
    case SDDPM_NOT_A_MODEL: return "the file is not a sparse-ddpm model";
    case SDDPM_VERSION: return "the model has a version of the format that this library cannot read";
    case SDDPM_DAMAGED: return "the model is damaged";
    case SDDPM_UNSUPPORTED: return "this machine or this build of the library cannot run the model";
    case SDDPM_LIMIT: return "the model needs more memory or work than the options allow";
    case SDDPM_MEMORY: return "out of memory or of threads";
    case SDDPM_CANCELLED: return "sampling was cancelled by the callback";
    case SDDPM_NOT_FINITE: return "the network returned infinity or NaN";
    case SDDPM_INTERNAL: return "the library made a mistake";
    default: return "an unknown status";
  }
}

const char *sddpm_last_error(void) { return last_error; }

int sddpm_open(const char *path, const sddpm_options *options, sddpm_model **model) {
  if (model == nullptr) return fail(SDDPM_INVALID, "model is NULL");
  *model = nullptr;
  return guarded([&] {
    if (path == nullptr) invalid("path is NULL");
    const auto map = [](Bytes &bytes, const void *name) { bytes.map(static_cast<const char *>(name)); };
    open_model(options, model, map, path, 0);
  });
}

int sddpm_open_memory(const void *bytes, size_t size, const sddpm_options *options,
                      sddpm_model **model) {
  if (model == nullptr) return fail(SDDPM_INVALID, "model is NULL");
  *model = nullptr;
  return guarded([&] {
    if (bytes == nullptr) invalid("bytes is NULL");
    open_model(options, model, nullptr, bytes, size);
  });
}

int sddpm_get_info(const sddpm_model *model, sddpm_info *info) {
  return guarded([&] {
    if (model == nullptr || info == nullptr) invalid("model or info is NULL");
    if (info->size < sizeof *info) invalid("info.size is not sizeof(sddpm_info)");
    const Model &is = model->model;
    double memory = static_cast<double>(is.floats()) * sizeof(float) * (3 * kBatch + 1), work = 0;
    for (const Plan &plan : is.plans) {
      memory += plan.memory;
      const double one = plan.work / static_cast<double>(plan.lanes);
      work = work > 0 ? std::min(work, one) : one;
    }
    info->channels = is.channels;
    info->height = is.height;
    info->width = is.width;
    info->samplers = static_cast<int32_t>(is.samplers.size());
    info->threads = model->limits.threads;
    info->file_bytes = model->bytes.size();
    info->memory_bytes = static_cast<uint64_t>(memory);
    info->work = static_cast<uint64_t>(work);
  });
}

const char *sddpm_sampler(const sddpm_model *model, int32_t index, int32_t *steps) {
  if (model == nullptr || index < 0 ||
      static_cast<size_t>(index) >= model->model.samplers.size())
    return nullptr;
  const NativeSampler &sampler = model->model.samplers[static_cast<size_t>(index)];
  if (steps != nullptr) *steps = sampler.steps;
  return sampler.name.c_str();
}

const char *sddpm_metadata(const sddpm_model *model, const char *key) {
  if (model == nullptr || key == nullptr) return nullptr;
  for (const auto &line : model->model.text)
    if (line.first == key) return line.second.c_str();
  return nullptr;
}

int sddpm_sample(sddpm_model *model, const char *sampler, uint64_t seed, uint64_t first,
                 uint64_t count, float *out, sddpm_callback callback, void *user) {
  return guarded([&] {
    if (model == nullptr || (out == nullptr && count > 0)) invalid("model or out is NULL");
    model->sample(sampler, seed, first, count, out, nullptr, callback, user);
  });
}

int sddpm_sample_uint8(sddpm_model *model, const char *sampler, uint64_t seed, uint64_t first,
                       uint64_t count, uint8_t *out, sddpm_callback callback, void *user) {
  return guarded([&] {
    if (model == nullptr || (out == nullptr && count > 0)) invalid("model or out is NULL");
    model->sample(sampler, seed, first, count, nullptr, out, callback, user);
  });
}

void sddpm_close(sddpm_model *model) { delete model; }
