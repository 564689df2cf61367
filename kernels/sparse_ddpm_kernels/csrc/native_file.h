// A model file: one flat run of bytes that is checked once and then used where it lies.
//
// Little-endian: header, table of sections, sections at multiples of 64. Arrays stand in one section,
// each at a multiple of 64, and records of the others refer to them. docs/native.md has the layout,
// sparse_ddpm/native.py writes it.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.h"

namespace sdk {

// What goes wrong with a model: an sddpm_status and what to say.
class ModelError : public std::runtime_error {
 public:
  ModelError(int code, const std::string &text) : std::runtime_error(text), status(code) {}
  const int status;
};

struct FileHeader {
  uint8_t magic[8];
  uint32_t byte_order, version;
  uint64_t bytes;
  uint32_t sections, checksum;  // of this header with 0 for it, and the table of sections
  uint8_t zero[32];
};
static_assert(sizeof(FileHeader) == 64, "layout");

enum SectionKind : uint32_t { kModel = 1, kText = 2, kSamplers = 3, kPlan = 4, kArrays = 5 };

struct FileSection {
  uint32_t kind, checksum;
  uint64_t offset, bytes, zero;
};
static_assert(sizeof(FileSection) == 32, "layout");

// `count` elements from byte `at` of the arrays on; none: both are 0.
struct FileArray {
  int64_t at, count;
};

struct FileModel {
  int32_t channels, height, width, dtype;  // dtype 0: float32
  int64_t film;                            // columns of a sampler's time table
  int64_t zero;
};
static_assert(sizeof(FileModel) == 32, "layout");

struct FileSampler {
  char name[32];  // ASCII, ends with a 0
  int32_t steps, clip;
  FileArray timesteps;     // int64 [steps]
  FileArray coefficients;  // float64 [steps, 7]: p, q, r, s, w, u, v
  FileArray film;          // float32 [steps, FileModel::film]
  int64_t zero;
};
static_assert(sizeof(FileSampler) == 96, "layout");

struct FilePlan {  // followed by its blocks, then its operations
  int64_t lanes, arena, blocks, operations;
};
static_assert(sizeof(FilePlan) == 32, "layout");

struct FileWeight {
  int32_t group, zero;
  int64_t panels;
  FileArray panel_ptr, offset, value, slot, bias;
};
static_assert(sizeof(FileWeight) == 96, "layout");

struct FileBlock {
  int32_t heads, dim_head, pixels, stride, chunks, zero;
  int64_t context, slot_numbers;
  double eps;
  FileWeight q, k, v, out;
  FileArray head;  // int32 [heads, 8]
};
static_assert(sizeof(FileBlock) == 448, "layout");

struct FileOperation {
  int32_t kind, silu, groups, heads, dim_head, group, size, copies, upsample;
  int32_t block;  // index, or -1
  int64_t film;
  double eps;
  sdk_tensor out, x, y;
  int64_t panels;
  FileArray a, b, panel_ptr, offset, value, slot;
};
static_assert(sizeof(sdk_tensor) == 48, "layout");
static_assert(sizeof(FileOperation) == 304, "layout");
static_assert(sizeof(sdk_linear_head) == 32, "layout");
static_assert(SDK_ABI == 6, "what the engine has learned since, the file has to say, check and version");

struct Limits {
  int threads;
  double memory;  // bytes
  double work;    // multiply-adds of a pass
};

struct Plan {
  int64_t lanes, arena;
  std::vector<sdk_linear_block> blocks;
  std::vector<sdk_op> operations;  // pointers lead into the file, and to `blocks`
  double memory = 0, work = 0;     // estimates, at most and about
};

struct NativeSampler {
  std::string name;
  int32_t steps;
  bool clip;
  const double *coefficients;
  const float *film;
};

struct Model {
  int32_t channels = 0, height = 0, width = 0;
  int64_t film = 0;
  std::map<std::string, std::string> text;
  std::vector<NativeSampler> samplers;
  std::vector<Plan> plans;

  int64_t floats() const { return static_cast<int64_t>(channels) * height * width; }
};

// Reads and checks; the bytes begin at a multiple of 64 and must outlive the result. Throws ModelError.
Model read_model(const uint8_t *bytes, size_t size, const Limits &limits);

}  // namespace sdk
