#include "native_file.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "include/sparse_ddpm.h"
#include "native_check.h"

namespace sdk {
namespace {

constexpr uint8_t kMagic[8] = {0x89, 'S', 'D', 'D', 'P', 'M', '\r', '\n'};
constexpr uint32_t kByteOrder = 0x01020304;
constexpr size_t kAlignment = 64;
constexpr uint32_t kMostSections = 64;
constexpr int64_t kMostText = 1 << 20, kMostSide = 1 << 20;
constexpr int kColumns = 7;  // of a sampler's table

[[noreturn]] void damaged(const std::string &what) { throw ModelError(SDDPM_DAMAGED, what); }

void need(bool good, const char *what) {
  if (!good) damaged(what);
}

// CRC-32 as in zlib, eight bytes at a time.
class Crc {
 public:
  Crc() {
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int bit = 0; bit < 8; ++bit) c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0);
      table_[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; ++i)
      for (int t = 1; t < 8; ++t)
        table_[t][i] = table_[t - 1][i] >> 8 ^ table_[0][table_[t - 1][i] & 0xff];
  }

  uint32_t operator()(const uint8_t *p, size_t size, uint32_t start = 0) const {
    uint32_t c = ~start;
    for (; size >= 8; p += 8, size -= 8) {
      uint32_t low, high;
      std::memcpy(&low, p, 4);
      std::memcpy(&high, p + 4, 4);
      low ^= c;
      c = table_[7][low & 0xff] ^ table_[6][low >> 8 & 0xff] ^ table_[5][low >> 16 & 0xff] ^
          table_[4][low >> 24] ^ table_[3][high & 0xff] ^ table_[2][high >> 8 & 0xff] ^
          table_[1][high >> 16 & 0xff] ^ table_[0][high >> 24];
    }
    for (; size > 0; ++p, --size) c = c >> 8 ^ table_[0][(c ^ *p) & 0xff];
    return ~c;
  }

 private:
  uint32_t table_[8][256];
};

struct Section {
  const uint8_t *bytes;
  size_t size;
  bool found;
};

// Takes records from a section, one after the other.
class Records {
 public:
  explicit Records(const Section &section) : next_(section.bytes), left_(section.size) {}

  template <class T>
  T take() {
    need(left_ >= sizeof(T), "a section ends too early");
    T record;
    std::memcpy(&record, next_, sizeof(T));
    next_ += sizeof(T);
    left_ -= sizeof(T);
    return record;
  }
  // How many more there can be.
  template <class T>
  int64_t room() const {
    return static_cast<int64_t>(left_ / sizeof(T));
  }
  bool empty() const { return left_ == 0; }

 private:
  const uint8_t *next_;
  size_t left_;
};

class Reader {
 public:
  Reader(const uint8_t *bytes, size_t size, const Limits &limits)
      : bytes_(bytes), size_(size), limits_(limits) {}

  Model read() {
    sections();
    model();
    text();
    samplers();
    for (const Section &section : plans_) plan(section);
    return std::move(model_);
  }

 private:
  void sections() {
    FileHeader header;
    if (size_ < sizeof header || std::memcmp(bytes_, kMagic, sizeof kMagic) != 0)
      throw ModelError(SDDPM_NOT_A_MODEL, "it does not begin as a model does");
    std::memcpy(&header, bytes_, sizeof header);
    if (header.byte_order != kByteOrder)
      throw ModelError(SDDPM_UNSUPPORTED, "models need a little-endian machine");
    if (header.version != SDDPM_FILE_VERSION)
      throw ModelError(SDDPM_VERSION, "the file has version " + std::to_string(header.version) +
                                          ", this library reads " +
                                          std::to_string(SDDPM_FILE_VERSION));
    if (header.bytes != size_)
      damaged("the file should have " + std::to_string(header.bytes) + " bytes and has " +
              std::to_string(size_));
    need(header.sections >= 1 && header.sections <= kMostSections, "the number of sections is wrong");
    const size_t table = header.sections * sizeof(FileSection);
    need(size_ >= sizeof header + table, "the table of sections ends too early");
    const uint32_t found = header.checksum;
    header.checksum = 0;
    uint32_t sum = crc_(reinterpret_cast<const uint8_t *>(&header), sizeof header);
    sum = crc_(bytes_ + sizeof header, table, sum);
    need(sum == found, "the checksum of the header differs");
    uint64_t end = sizeof header + table;
    for (uint32_t i = 0; i < header.sections; ++i) {
      FileSection entry;
      std::memcpy(&entry, bytes_ + sizeof header + i * sizeof entry, sizeof entry);
      need(entry.offset % kAlignment == 0 && entry.offset >= end && entry.offset <= size_ &&
               entry.bytes <= size_ - entry.offset,
           "a section lies outside the file, or over another");
      end = entry.offset + entry.bytes;
      const Section section = {bytes_ + entry.offset, static_cast<size_t>(entry.bytes), true};
      need(crc_(section.bytes, section.size) == entry.checksum, "the checksum of a section differs");
      if (entry.kind == kPlan) {
        plans_.push_back(section);
        continue;
      }
      need(entry.kind >= kModel && entry.kind <= kArrays, "a section is of no known kind");
      need(!only_[entry.kind].found, "two sections are of the same kind");
      only_[entry.kind] = section;
    }
    for (const uint32_t kind : {kModel, kText, kSamplers, kArrays})
      need(only_[kind].found, "a section is missing");
    need(!plans_.empty(), "there is no plan");
  }

  void model() {
    Records records(only_[kModel]);
    const auto r = records.take<FileModel>();
    if (r.dtype != 0) throw ModelError(SDDPM_UNSUPPORTED, "this library computes in float32 only");
    need(records.empty() && r.channels >= 1 && r.height >= 1 && r.width >= 1 &&
             r.channels <= kMostSide && r.height <= kMostSide && r.width <= kMostSide,
         "the shape of an image is wrong");
    // What follows multiplies these: far below 2^63.
    const double floats = static_cast<double>(r.channels) * r.height * r.width;
    if (floats * sizeof(float) * 64 > limits_.memory)
      throw ModelError(SDDPM_LIMIT, "images are larger than the limit of memory allows");
    need(r.film >= 0 && r.film <= kMostSide * 64, "the width of the time table is wrong");
    model_.channels = r.channels;
    model_.height = r.height;
    model_.width = r.width;
    model_.film = r.film;
  }

  // Lines of key=value.
  void text() {
    const Section &section = only_[kText];
    need(section.size <= kMostText, "the text is too long");
    const std::string all(reinterpret_cast<const char *>(section.bytes), section.size);
    need(all.find('\0') == std::string::npos, "the text holds a zero byte");
    for (size_t at = 0; at < all.size();) {
      const size_t end = all.find('\n', at), equals = all.find('=', at);
      need(end != std::string::npos && equals != std::string::npos && equals > at && equals < end,
           "a line of the text is no key=value");
      model_.text[all.substr(at, equals - at)] = all.substr(equals + 1, end - equals - 1);
      at = end + 1;
    }
  }

  void samplers() {
    Records records(only_[kSamplers]);
    while (!records.empty()) {
      const auto r = records.take<FileSampler>();
      const size_t length = strnlen(r.name, sizeof r.name);
      need(length > 0 && length < sizeof r.name, "the name of a sampler is wrong");
      for (size_t i = 0; i < length; ++i)
        need(r.name[i] > ' ' && r.name[i] <= '~', "the name of a sampler is wrong");
      const std::string name(r.name, length);
      for (const NativeSampler &other : model_.samplers)
        need(other.name != name, "two samplers have the same name");
      need(r.steps >= 1 && r.steps <= kMostSide && (r.clip == 0 || r.clip == 1),
           "a sampler's number of steps, or whether it clips, is wrong");
      need(array<int64_t>(r.timesteps) != nullptr && r.timesteps.count == r.steps &&
               r.coefficients.count == kColumns * r.steps && r.film.count == r.steps * model_.film,
           "a sampler's table has another size than its steps");
      const NativeSampler sampler = {name, r.steps, r.clip == 1, array<double>(r.coefficients),
                                     array<float>(r.film)};
      for (int64_t i = 0; i < r.coefficients.count; ++i)
        need(std::isfinite(sampler.coefficients[i]), "a sampler's coefficient is not finite");
      model_.samplers.push_back(sampler);
    }
    need(!model_.samplers.empty(), "there is no sampler");
  }

  void plan(const Section &section) {
    Records records(section);
    const auto r = records.take<FilePlan>();
    for (const Plan &other : model_.plans)
      need(other.lanes != r.lanes, "two plans are for the same number of images");
    need(r.blocks >= 0 && r.blocks <= records.room<FileBlock>(), "the number of blocks is wrong");
    Plan plan;
    plan.lanes = r.lanes;
    plan.arena = r.arena;
    std::vector<BlockCounts> block_counts;
    for (int64_t i = 0; i < r.blocks; ++i) {
      const auto b = records.take<FileBlock>();
      sdk_linear_block block = {};
      block.heads = b.heads;
      block.dim_head = b.dim_head;
      block.pixels = b.pixels;
      block.stride = b.stride;
      block.chunks = b.chunks;
      block.context = b.context;
      block.slot_numbers = b.slot_numbers;
      block.eps = b.eps;
      block.head = array<sdk_linear_head>(b.head, 8);
      BlockCounts counts = {};
      counts.head = b.head.count;
      block.q = weight(b.q, counts.q);
      block.k = weight(b.k, counts.k);
      block.v = weight(b.v, counts.v);
      block.out = weight(b.out, counts.out);
      plan.blocks.push_back(block);
      block_counts.push_back(counts);
    }
    need(r.operations == records.room<FileOperation>(), "the number of operations is wrong");
    std::vector<OperationCounts> counts;
    for (int64_t i = 0; i < r.operations; ++i) {
      const auto o = records.take<FileOperation>();
      sdk_op op = {};
      op.kind = o.kind;
      op.silu = o.silu;
      op.groups = o.groups;
      op.heads = o.heads;
      op.dim_head = o.dim_head;
      op.group = o.group;
      op.size = o.size;
      op.copies = o.copies;
      op.upsample = o.upsample;
      op.film = o.film;
      op.eps = o.eps;
      op.out = o.out;
      op.x = o.x;
      op.y = o.y;
      op.panels = o.panels;
      op.a = array<float>(o.a);
      op.b = array<float>(o.b);
      op.panel_ptr = array<int64_t>(o.panel_ptr);
      op.offset = array<int32_t>(o.offset);
      op.value = array<float>(o.value);
      op.slot = array<int32_t>(o.slot);
      need(o.block >= -1 && o.block < r.blocks, "an operation names a block that is not there");
      op.block = o.block < 0 ? nullptr : &plan.blocks[static_cast<size_t>(o.block)];
      plan.operations.push_back(op);
      counts.push_back({o.a.count, o.b.count, o.panel_ptr.count, o.offset.count, o.value.count,
                        o.slot.count});
    }
    need(records.empty(), "a plan goes on after its operations");
    check_plan(plan, counts, block_counts, model_, limits_);
    model_.plans.push_back(std::move(plan));
  }

  sdk_weight weight(const FileWeight &w, WeightCounts &counts) {
    sdk_weight made = {};
    made.group = w.group;
    made.panels = w.panels;
    made.panel_ptr = array<int64_t>(w.panel_ptr);
    made.offset = array<int32_t>(w.offset);
    made.value = array<float>(w.value);
    made.slot = array<int32_t>(w.slot);
    made.bias = array<float>(w.bias);
    counts = {w.panel_ptr.count, w.offset.count, w.value.count, w.slot.count, w.bias.count};
    return made;
  }

  // The array itself, or null where it has no elements; `parts`: of an element, as they are counted.
  template <class T>
  const T *array(const FileArray &r, int64_t parts = 1) {
    const Section &all = only_[kArrays];
    if (r.count == 0) {
      need(r.at == 0, "an empty array has a place");
      return nullptr;
    }
    need(r.count > 0 && r.count % parts == 0 && r.at >= 0 && r.at % kAlignment == 0 &&
             static_cast<uint64_t>(r.at) <= all.size &&
             static_cast<uint64_t>(r.count) <=
                 (all.size - static_cast<uint64_t>(r.at)) / (sizeof(T) / static_cast<size_t>(parts)),
         "an array lies outside its section");
    return reinterpret_cast<const T *>(all.bytes + r.at);
  }

  const uint8_t *bytes_;
  size_t size_;
  const Limits &limits_;
  const Crc crc_;
  Section only_[kArrays + 1] = {};
  std::vector<Section> plans_;
  Model model_;
};

}  // namespace

Model read_model(const uint8_t *bytes, size_t size, const Limits &limits) {
  return Reader(bytes, size, limits).read();
}

}  // namespace sdk
