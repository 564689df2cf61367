// The executor: copies a program, prepares its operations, runs them in order.
#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "operation.h"
#include "pool.h"
#include "tiles.h"

namespace sdk {
namespace {

struct Free {
  void operator()(float *p) const { std::free(p); }
};
constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;

size_t rounded_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// All that an engine holds, zeroed: arrays aligned to cache lines, side by side on huge pages, as
// small pages would cost the kernels, which read here and there, a miss for nearly every one.
class Memory {
 public:
  explicit Memory(bool borrow) : borrow_(borrow) {}

  float *take(int64_t count) {
    const size_t wanted = rounded_up(static_cast<size_t>(count) * sizeof(float), kLine);
    taken_ += static_cast<int64_t>(wanted);
#if defined(__SANITIZE_ADDRESS__)
    return block(wanted > 0 ? wanted : kLine, kLine);  // so that a step past its end is seen
#else
    if (wanted > left_) {
      const size_t bytes = rounded_up(wanted, kHugePage);
      float *fresh = block(bytes, kHugePage);
      if (bytes - wanted > left_) {
        next_ = fresh + wanted / sizeof(float);
        left_ = bytes - wanted;
      }
      return fresh;
    }
    float *p = next_;
    next_ += wanted / sizeof(float);
    left_ -= wanted;
    return p;
#endif
  }

  template <class T>
  T *copy(const T *from, int64_t count) {
    static_assert(sizeof(T) % sizeof(float) == 0, "stored as floats");
    if (from == nullptr) return nullptr;
    T *to = reinterpret_cast<T *>(take(count * static_cast<int64_t>(sizeof(T) / sizeof(float))));
    if (count > 0) std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
    return to;
  }

  template <class T>
  T *copy(const std::vector<T> &from) {
    return copy(from.data(), static_cast<int64_t>(from.size()));
  }

  // An array of the caller's: a copy, or with SDK_BORROW itself.
  template <class T>
  const T *keep(const T *from, int64_t count) {
    return borrow_ ? from : copy(from, count);
  }

  sdk_weight keep(sdk_weight w) {
    const int64_t slots = w.panels * w.group, entries = w.panel_ptr[w.panels];
    w.panel_ptr = keep(w.panel_ptr, w.panels + 1);
    w.offset = keep(w.offset, entries);
    w.value = keep(w.value, entries * w.group);
    w.slot = keep(w.slot, slots);
    w.bias = keep(w.bias, slots);
    return w;
  }

  // What was asked for.
  int64_t bytes() const { return taken_; }

 private:
  float *block(size_t bytes, size_t alignment) {
    void *p = nullptr;
    if (posix_memalign(&p, alignment, bytes) != 0) throw std::bad_alloc();
    blocks_.emplace_back(static_cast<float *>(p));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment == kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
#endif
    std::memset(p, 0, bytes);
    return blocks_.back().get();
  }

  const bool borrow_;
  std::vector<std::unique_ptr<float, Free>> blocks_;
  float *next_ = nullptr;
  size_t left_ = 0;
  int64_t taken_ = 0;
};

uint32_t supported() {
#if defined(SDK_NEON_KERNELS)
  return 1u << SDK_NEON;  // every AArch64 processor has it
#else
  uint32_t isas = 1u << SDK_BASELINE;
#if defined(SDK_X86_KERNELS)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    isas |= 1u << SDK_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
      isas |= 1u << SDK_AVX512;
  }
#endif
  return isas;
#endif
}

bool multiplies_pairs() {
#if defined(SDK_X86_KERNELS)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const Kernels &kernels_of(int isa, bool half, bool pairs) {
  if (pairs && !(half && isa == SDK_AVX512 && multiplies_pairs()))
    throw std::invalid_argument("bfloat16 products need halves and AVX512-BF16");
#if defined(SDK_NEON_KERNELS)
  if (isa == SDK_NEON) return half ? neon_half_kernels : neon_kernels;
#else
  if (isa == SDK_BASELINE && half)
    throw std::invalid_argument("the baseline instruction set has no 16-bit floats");
  if (isa == SDK_BASELINE) return baseline_kernels;
#endif
#if defined(SDK_X86_KERNELS)
  if (isa == SDK_AVX2) return half ? avx2_half_kernels : avx2_kernels;
  if (isa == SDK_AVX512 && pairs) return avx512_dot_kernels;
  if (isa == SDK_AVX512) return half ? avx512_half_kernels : avx512_kernels;
#endif
  throw std::invalid_argument("no such instruction set");
}

// Panels whose entries go in pairs, an odd one with a weight of 0: offsets of both, and for each
// channel the bits of two bfloat16, the first in the lower half.
struct Pairs {
  std::vector<int64_t> panel_ptr{0};
  std::vector<int32_t> offset;
  std::vector<uint32_t> value;
};

// To the nearest, ties to even.
uint32_t bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

Pairs make_pairs(const sdk_op &op) {
  Pairs made;
  for (int64_t panel = 0; panel < op.panels; ++panel) {
    const int64_t end = op.panel_ptr[panel + 1];
    for (int64_t k = op.panel_ptr[panel]; k < end; k += 2) {
      const bool two = k + 1 < end;
      made.offset.push_back(op.offset[k]);
      made.offset.push_back(op.offset[two ? k + 1 : k]);
      for (int32_t g = 0; g < op.group; ++g)
        made.value.push_back(bfloat16(op.value[k * op.group + g]) |
                             (two ? bfloat16(op.value[(k + 1) * op.group + g]) << 16 : 0));
    }
    made.panel_ptr.push_back(static_cast<int64_t>(made.offset.size()) / 2);
  }
  return made;
}

// Channels whose halo one unit of work clears.
constexpr int64_t kHaloChannels = 8;

int64_t halo_units(const sdk_tensor &t) {
  return t.halo > 0 ? (t.channels + kHaloChannels - 1) / kHaloChannels : 0;
}

int64_t image_floats(const sdk_tensor &t) {
  return static_cast<int64_t>(t.channels) * t.height * t.width;
}

template <class Real>
void zero(Real *from, int64_t count) {
  std::memset(from, 0, static_cast<size_t>(count) * sizeof(Real));
}

// Real: float, or the bits of a half.
template <class Real>
void clear_halo(const sdk_tensor &t, Real *arena, int64_t lanes, int64_t unit) {
  const int64_t row = t.width * lanes, gap = t.row_stride - row;
  const int64_t end = (unit + 1) * kHaloChannels;
  for (int64_t c = unit * kHaloChannels; c < end && c < t.channels; ++c) {
    Real *first = arena + t.offset + c * t.channel_stride;
    zero(first - t.channel_lead, t.channel_lead);
    // Gaps are short as a rule: a call for each would cost more than its floats.
    for (int64_t h = 0; h + 1 < t.height; ++h)
      for (int64_t i = row; i < row + gap; ++i) first[h * t.row_stride + i] = Real{};
    zero(first + (t.height - 1) * t.row_stride + row, t.halo * (t.row_stride + lanes));
  }
}

}  // namespace
}  // namespace sdk

using namespace sdk;

struct sdk_engine {
  explicit sdk_engine(const sdk_program &program);

  void run(const float *x, float *out, const float *row, int64_t images);
  static void work(void *self, int64_t task, int64_t unit, int thread);
  static void done(void *self, int64_t task);

  int32_t isa, flags;
  const Kernels *kernels;
  Step step{};
  void prepare_conv(Operation &op, Tiling &tiling, const sdk_program &program);
  void set_biases(const float *row);
  bool leaves_moments(const Operation &conv, const Tiling &tiling, const Operation &norm) const;

  int64_t arena_floats, scratch_floats = 0, moment_floats = 0;
  int64_t input_floats = 0, output_floats = 0;  // of one image
  Memory memory;
  float *moments;
  std::vector<Scratch> scratch;  // of each thread
  std::vector<Operation> operations;
  std::vector<size_t> timed;  // convolutions whose bias is in the step's row
  std::vector<int64_t> main_units;
  std::vector<Tiling> tilings;
  std::map<const sdk_linear_block *, std::unique_ptr<sdk_linear_block>> blocks;
  std::vector<double> seconds;
  std::chrono::steady_clock::time_point clock;
  std::unique_ptr<Pool> pool;  // last: its threads end first
};

sdk_engine::sdk_engine(const sdk_program &program)
    : flags(program.flags), memory((program.flags & SDK_BORROW) != 0) {
  isa = program.isa;
  if (isa < 0)
    for (int i = 0; i < SDK_ISAS; ++i)
      if (supported() >> i & 1) isa = i;
  if (isa >= SDK_ISAS || !(supported() >> isa & 1))
    throw std::invalid_argument("this machine lacks the instruction set that was asked for");
  const bool half = flags & SDK_HALF;
  kernels = &kernels_of(isa, half, flags & SDK_BF16);
  // Of halves two fill a float.
  arena_floats = (half ? (program.arena + 1) / 2 : program.arena);
  step.arena = memory.take(arena_floats);
  step.lanes = program.lanes;
  const auto count = static_cast<size_t>(program.ops);
  operations.resize(count);
  tilings.resize(count);
  main_units.resize(count);
  seconds.resize(count);
  std::vector<int64_t> units(count);
  for (size_t i = 0; i < count; ++i) {
    Operation &op = operations[i];
    op = Operation{};
    op.is = program.op[i];
    op.step = &step;
    if (op.is.kind < 0 || op.is.kind >= SDK_KINDS) throw std::invalid_argument("no such operation");
    if (op.is.kind == SDK_LOAD) input_floats = image_floats(op.is.out);
    if (op.is.kind == SDK_STORE) output_floats = image_floats(op.is.x);
    if (op.is.kind == SDK_CONV) {
      prepare_conv(op, tilings[i], program);
      if (op.is.film >= 0) timed.push_back(i);
    } else if (op.is.block != nullptr) {
      // The operations of a block share its copy.
      std::unique_ptr<sdk_linear_block> &block = blocks[op.is.block];
      if (block == nullptr) {
        block = std::make_unique<sdk_linear_block>(*op.is.block);
        block->head = memory.keep(block->head, block->heads);
        for (sdk_weight *w : {&block->q, &block->k, &block->v, &block->out})
          *w = memory.keep(*w);
      }
      op.is.block = block.get();
      op.is.a = memory.keep(op.is.a, op.is.out.channels);
    } else if (op.is.kind == SDK_ATTENTION || op.is.kind == SDK_LINEAR_ATTENTION) {
      if (op.is.a == nullptr) op.is.groups = 0;
      op.is.a = memory.keep(op.is.a, int64_t{2} * op.is.heads * op.is.dim_head * op.is.groups);
    } else {
      op.is.a = memory.keep(op.is.a, op.is.x.channels);
      op.is.b = memory.keep(op.is.b, op.is.x.channels);
    }
    if (i > 0 && leaves_moments(operations[i - 1], tilings[i - 1], op)) {
      Operation &conv = operations[i - 1];
      const int64_t channels = conv.is.out.channels;
      op.moment_spans = tilings[i - 1].spans();
      if (conv.is.film < 0) op.moment_bias = memory.keep(program.op[i - 1].a, channels);
      moment_floats = std::max(moment_floats, channels * op.moment_spans * 2 * kernels->vector);
    }
    main_units[i] = kernels->units(op);
    units[i] = main_units[i] + halo_units(op.is.out);
    const int64_t floats = kernels->scratch_floats(op);
    if (floats > scratch_floats) scratch_floats = floats;
  }
  moments = memory.take(moment_floats);
  for (size_t i = 1; i < count; ++i)
    if (operations[i].moment_spans > 0) operations[i].moments = operations[i - 1].moments = moments;
  for (int t = 0; t < program.threads; ++t)
    scratch.push_back({memory.take(scratch_floats), nullptr, 0, 0});
  pool = std::make_unique<Pool>(program.threads, units, this, &work,
                                flags & SDK_PROFILE ? &done : nullptr);
}

void sdk_engine::prepare_conv(Operation &op, Tiling &tiling, const sdk_program &program) {
  sdk_op &is = op.is;
  tiling = make_tiling(is, program.lanes, program.threads, *kernels);
  op.tiles = tiling.tiles.data();
  op.tile_count = static_cast<int64_t>(tiling.tiles.size());
  op.block = tiling.block.data();
  op.blocks = static_cast<int64_t>(tiling.block.size()) - 1;
  op.span = tiling.span;
  op.flat = tiling.flat;
  op.flat_floats = tiling.flat_floats;
  op.x_row = tiling.x_row;
  Copies copies;
  if (is.copies > 0) {
    copies = make_copies(is, tiling, program.lanes, kernels->vector);
    op.taps.copy = memory.copy(copies.copy);
    op.taps.count = static_cast<int64_t>(copies.copy.size());
    op.taps.floats = copies.floats;
    op.taps.shift = memory.copy(copies.shift);
    op.taps.height = is.out.height;
    op.taps.row = tiling.x_row;
    op.taps.rows = tiling.tap_rows.data();
    if (!copies.keep.empty()) op.taps.keep = memory.copy(copies.keep);
    op.taps.keep_period = copies.period;
    op.taps.doubled = copies.doubled;
    is.offset = copies.offset.data();
  }
  const int64_t slots = is.panels * is.group, entries = is.panel_ptr[is.panels];
  if (kernels->dot_group > 0 && is.group >= kernels->dot_group) {
    const Pairs pairs = make_pairs(is);
    is.panel_ptr = memory.copy(pairs.panel_ptr);
    is.offset = memory.copy(pairs.offset);
    is.value = reinterpret_cast<const float *>(memory.copy(pairs.value));
  } else {
    is.panel_ptr = memory.keep(is.panel_ptr, is.panels + 1);
    // Those of copies were laid out here.
    is.offset = is.copies > 0 ? memory.copy(is.offset, entries) : memory.keep(is.offset, entries);
    is.value = memory.keep(is.value, entries * is.group);
  }
  is.slot = memory.keep(is.slot, slots);
  std::vector<float> bias(static_cast<size_t>(slots));
  for (int64_t s = 0; s < slots; ++s)
    if (is.film < 0 && is.a != nullptr && is.slot[s] >= 0)
      bias[static_cast<size_t>(s)] = is.a[is.slot[s]];
  op.bias = memory.copy(bias);
}

// Few numbers beside what a step multiplies: the caller's thread brings them to their slots.
void sdk_engine::set_biases(const float *row) {
  for (const size_t i : timed) {
    const Operation &op = operations[i];
    const int64_t slots = op.is.panels * op.is.group;
    const float *bias = row + op.is.film;
    for (int64_t s = 0; s < slots; ++s)
      if (op.is.slot[s] >= 0) op.bias[s] = bias[op.is.slot[s]];
    if (i + 1 < operations.size() && operations[i + 1].moment_spans > 0)
      operations[i + 1].moment_bias = bias;
  }
}

// Whether the convolution can sum up, while it has them in registers, what the norm needs to know.
bool sdk_engine::leaves_moments(const Operation &conv, const Tiling &tiling,
                                const Operation &norm) const {
  // Of a tile: with fewer the convolution loses more than the norm saves. Of an image: with fewer
  // there is nothing to save.
  constexpr int64_t kLeastVectors = 8;
  const bool follows = conv.is.kind == SDK_CONV && norm.is.kind == SDK_NORM_ACT &&
                       conv.is.out.offset == norm.is.x.offset &&
                       conv.is.out.channels == norm.is.x.channels && conv.is.y.channels == 0;
  return follows && !tiling.flat && tiling.widest >= kLeastVectors && (step.lanes == 1 || step.lanes == kernels->vector) &&
         tiling.vectors >= kLeastVectors * tiling.spans();
}

void sdk_engine::work(void *self, int64_t task, int64_t unit, int thread) {
  auto &engine = *static_cast<sdk_engine *>(self);
  const auto index = static_cast<size_t>(task);
  const Operation &op = engine.operations[index];
  const int64_t halo = unit - engine.main_units[index];
  if (halo >= 0) {
    if (engine.flags & SDK_HALF) {
      clear_halo(op.is.out, static_cast<uint16_t *>(engine.step.arena), engine.step.lanes, halo);
    } else {
      clear_halo(op.is.out, static_cast<float *>(engine.step.arena), engine.step.lanes, halo);
    }
  } else {
    engine.kernels->run[op.is.kind](op, unit, engine.scratch[static_cast<size_t>(thread)]);
  }
}

void sdk_engine::done(void *self, int64_t task) {
  auto &engine = *static_cast<sdk_engine *>(self);
  const auto now = std::chrono::steady_clock::now();
  engine.seconds[static_cast<size_t>(task)] +=
      std::chrono::duration<double>(now - engine.clock).count();
  engine.clock = now;
}

void sdk_engine::run(const float *x, float *out, const float *row, int64_t images) {
  step.row = row;
  set_biases(row);
  std::fill(seconds.begin(), seconds.end(), 0.0);
  clock = std::chrono::steady_clock::now();
  for (int64_t first = 0; first < images; first += step.lanes) {
    step.input = x + first * input_floats;
    step.output = out + first * output_floats;
    step.images = std::min(step.lanes, images - first);
    ++step.pass;
    if (flags & SDK_POISON) {
      // All bits set is a NaN.
      std::memset(step.arena, 0xff, static_cast<size_t>(arena_floats) * sizeof(float));
      std::memset(moments, 0xff, static_cast<size_t>(moment_floats) * sizeof(float));
      for (Scratch &one : scratch)
        std::memset(one.floats, 0xff, static_cast<size_t>(scratch_floats) * sizeof(float));
    }
    pool->run();
  }
}

int32_t sdk_abi(void) { return SDK_ABI; }
int64_t sdk_op_size(void) { return sizeof(sdk_op); }
uint32_t sdk_isas(void) { return supported(); }
int32_t sdk_dot(void) { return multiplies_pairs(); }

sdk_engine *sdk_create(const sdk_program *program, char *error, int64_t size) {
  const auto fail = [&](const char *what) -> sdk_engine * {
    if (size > 0) std::snprintf(error, static_cast<size_t>(size), "%s", what);
    return nullptr;
  };
  if (program->abi != SDK_ABI) return fail("the library has another ABI version than its caller");
  try {
    return new sdk_engine(*program);
  } catch (const std::bad_alloc &) {
    return fail("out of memory");
  } catch (const std::exception &e) {
    return fail(e.what());
  }
}

void sdk_run(sdk_engine *engine, const float *x, float *out, const float *row, int64_t images) {
  engine->run(x, out, row, images);
}

const void *sdk_arena(const sdk_engine *engine) { return engine->step.arena; }
int32_t sdk_engine_isa(const sdk_engine *engine) { return engine->isa; }
int64_t sdk_bytes(const sdk_engine *engine) {
  return engine->memory.bytes() - engine->arena_floats * static_cast<int64_t>(sizeof(float));
}
void sdk_seconds(const sdk_engine *engine, double *seconds) {
  std::memcpy(seconds, engine->seconds.data(), engine->seconds.size() * sizeof(double));
}
void sdk_destroy(sdk_engine *engine) {
  if (!engine->pool->forked()) delete engine;
}
