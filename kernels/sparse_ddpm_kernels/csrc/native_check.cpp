#include "native_check.h"

#include <algorithm>
#include <cmath>

#include "include/sparse_ddpm.h"

namespace sdk {
namespace {

constexpr int64_t kLine = 16;  // floats
constexpr int32_t kMostSide = 1 << 20, kMostHalo = 1 << 10, kMostSize = 255;
constexpr int32_t kMostCopiedSize = 7;
// Of an arena: units of work are counted in 32 bits, and no sum of products below can overflow.
constexpr int64_t kMostFloats = int64_t{1} << 34;
constexpr int64_t kMostOperations = 1 << 20;
constexpr double kFloat = sizeof(float);
// What an operation takes of memory at least, and a thread for each.
constexpr double kOperationBytes = 2048, kShareBytes = 64;

class Checker {
 public:
  Checker(Plan &plan, const std::vector<OperationCounts> &operations,
          const std::vector<BlockCounts> &blocks, const Model &model, const Limits &limits)
      : plan_(plan), counts_(operations), blocks_(blocks), model_(model), limits_(limits),
        lanes_(plan.lanes), arena_(plan.arena) {}

  void run() {
    need(lanes_ == 1 || lanes_ == kLine, "the number of images of a pass");
    need(arena_ >= 1 && arena_ <= kMostFloats, "the size of the arena");
    const auto count = static_cast<int64_t>(plan_.operations.size());
    need(count >= 2 && count <= kMostOperations, "the number of operations");
    plan_.memory = kFloat * static_cast<double>(arena_) +
                   static_cast<double>(count) * (kOperationBytes + kShareBytes * limits_.threads);
    check_limits();
    for (index_ = 0; index_ < count; ++index_) {
      const sdk_op &op = plan_.operations[static_cast<size_t>(index_)];
      need((op.kind == SDK_LOAD) == (index_ == 0), "the input is not loaded first, and once");
      need((op.kind == SDK_STORE) == (index_ == count - 1), "the output is not stored last, and once");
      operation(op, counts_[static_cast<size_t>(index_)]);
      check_limits();
    }
    plan_.memory += kFloat * (scratch_ * limits_.threads + moments_);
    check_limits();
  }

 private:
  void need(bool good, const char *what) const {
    if (good) return;
    std::string text = "the plan for " + std::to_string(lanes_) + " images";
    if (index_ >= 0) text += ", operation " + std::to_string(index_);
    throw ModelError(SDDPM_DAMAGED, text + ": wrong: " + what);
  }

  void check_limits() const {
    if (plan_.memory > limits_.memory)
      throw ModelError(SDDPM_LIMIT, "the plan for " + std::to_string(lanes_) +
                                        " images needs more memory than the limit allows");
    if (plan_.work > limits_.work)
      throw ModelError(SDDPM_LIMIT, "the plan for " + std::to_string(lanes_) +
                                        " images needs more work than the limit allows");
  }

  // Every channel with its lead, its halo and at least a line behind it lies in the arena, and a line
  // before the first channel.
  void tensor(const sdk_tensor &t) const {
    need(t.channels >= 1 && t.channels <= kMostSide && t.height >= 1 && t.height <= kMostSide &&
             t.width >= 1 && t.width <= kMostSide && t.halo >= 0 && t.halo <= kMostHalo,
         "the shape of a tensor");
    const int64_t row = (static_cast<int64_t>(t.width) + t.halo) * lanes_;
    const int64_t margin = t.halo * (row + lanes_);
    need(t.row_stride == row, "the rows of a tensor");
    need(t.channel_lead >= margin && t.channel_lead <= arena_ && t.channel_stride <= arena_ &&
             t.channel_stride >= t.channel_lead + image(t) + margin + kLine,
         "the channels of a tensor");
    need(t.offset >= t.channel_lead + kLine && t.offset <= arena_ &&
             t.channels <= (arena_ - (t.offset - t.channel_lead)) / t.channel_stride,
         "the place of a tensor");
  }

  void absent(const sdk_tensor &t) const {
    need(t.channels == 0 && t.height == 0 && t.width == 0 && t.halo == 0 && t.offset == 0 &&
             t.channel_stride == 0 && t.row_stride == 0 && t.channel_lead == 0,
         "a tensor where none belongs");
  }

  // Floats from the first pixel of a channel to past the last.
  int64_t image(const sdk_tensor &t) const { return (t.height - 1) * t.row_stride + t.width * lanes_; }

  static double pixels(const sdk_tensor &t) { return static_cast<double>(t.height) * t.width; }
  double floats(const sdk_tensor &t) const {
    return pixels(t) * t.channels * static_cast<double>(lanes_);
  }

  static bool same_image(const sdk_tensor &a, const sdk_tensor &b) {
    return a.height == b.height && a.width == b.width;
  }
  static bool twice(const sdk_tensor &large, const sdk_tensor &small) {
    return large.height == 2 * small.height && large.width == 2 * small.width;
  }

  // Of the same shape as `as`, or not there.
  void residual(const sdk_tensor &y, const sdk_tensor &as) const {
    if (y.channels == 0) return absent(y);
    tensor(y);
    need(y.channels == as.channels && same_image(y, as), "the shape of a residual");
  }

  void scratch(double numbers) { scratch_ = std::max(scratch_, numbers); }

  void operation(const sdk_op &op, const OperationCounts &n) {
    const bool linear = op.kind == SDK_LINEAR_CONTEXT || op.kind == SDK_LINEAR_MERGE ||
                        op.kind == SDK_LINEAR_APPLY;
    need(linear == (op.block != nullptr), "a block where none belongs, or none where one does");
    need(std::isfinite(op.eps) && op.eps >= 0.0, "eps");
    need((op.silu | 1) == 1 && (op.upsample | 1) == 1, "a flag");
    if (op.kind != SDK_CONV)
      need(op.panels == 0 && n.panel_ptr == 0 && n.offset == 0 && n.value == 0 && n.slot == 0,
           "panels where none belong");
    const sdk_tensor &x = op.x, &out = op.out;
    if (op.kind == SDK_LOAD) {
      absent(x);
    } else {
      tensor(x);
      plan_.work += floats(x);
    }
    if (op.kind == SDK_STORE || op.kind == SDK_LINEAR_CONTEXT || op.kind == SDK_LINEAR_MERGE) {
      absent(out);
    } else {
      tensor(out);
      plan_.work += floats(out);
    }
    if (op.kind == SDK_CONV || op.kind == SDK_NORM_ACT || op.kind == SDK_CHANNEL_NORM ||
        op.kind == SDK_LINEAR_APPLY) {
      residual(op.y, out);
    } else if (op.kind != SDK_ADD) {
      absent(op.y);
    }
    switch (op.kind) {
      case SDK_LOAD: return picture(out);
      case SDK_STORE: return picture(x);
      case SDK_CONV: return conv(op, n);
      case SDK_NORM_ACT: return norm(op, n);
      case SDK_CHANNEL_NORM:
        need(x.channels == out.channels && same_image(x, out), "the shape of a norm");
        need(n.a == x.channels, "the gain of a norm");
        return;
      case SDK_ATTENTION:
      case SDK_LINEAR_ATTENTION: return attention(op, n);
      case SDK_SPACE_TO_DEPTH:
        need(twice(x, out) && out.channels == 4 * int64_t{x.channels}, "the shape of an unshuffling");
        return;
      case SDK_UPSAMPLE:
        need(twice(out, x) && out.channels == x.channels, "the shape of an upsampling");
        return;
      case SDK_COPY:
        need(x.channels == out.channels && same_image(x, out), "the shape of a copy");
        return;
      case SDK_ADD:
        tensor(op.y);
        need(x.channels == out.channels && same_image(x, out) && op.y.channels == out.channels &&
                 same_image(op.y, out),
             "the shape of a sum");
        return;
      case SDK_LINEAR_CONTEXT:
      case SDK_LINEAR_MERGE:
      case SDK_LINEAR_APPLY: return linear_block(op, n);
      default: need(false, "its kind");
    }
  }

  void picture(const sdk_tensor &t) const {
    need(t.channels == model_.channels && t.height == model_.height && t.width == model_.width,
         "the shape of an image");
  }

  // Columns of the time table, or -1 for none.
  void film(int64_t first, int64_t columns) const {
    need(first == -1 || (first >= 0 && columns <= model_.film && first <= model_.film - columns),
         "columns of the time table");
  }

  void norm(const sdk_op &op, const OperationCounts &n) {
    const sdk_tensor &x = op.x;
    need(x.channels == op.out.channels && same_image(x, op.out), "the shape of a norm");
    need(op.groups >= 1 && x.channels % op.groups == 0, "the groups of a norm");
    film(op.film, 2 * int64_t{x.channels});
    const int64_t given = op.film < 0 ? x.channels : 0;
    need(n.a == given && n.b == given, "the factors or summands of a norm");
    scratch(2 * kLine);
    moments_ = std::max(moments_, floats(x));  // that a convolution leaves, where there are so many
  }

  void attention(const sdk_op &op, const OperationCounts &n) {
    const sdk_tensor &x = op.x;
    need(op.heads >= 1 && op.dim_head >= 1 && op.heads <= kMostSide && op.dim_head <= kMostSide,
         "heads");
    const int64_t hidden = int64_t{op.heads} * op.dim_head;
    need(x.channels == 3 * hidden && op.out.channels == hidden && same_image(x, op.out),
         "the shape of an attention");
    need(op.groups >= 0 && op.groups <= kMostSide && n.a == 2 * hidden * op.groups && n.b == 0,
         "the memory of an attention");
    const double more = op.groups, vectors = pixels(x) + kLine, dim = op.dim_head, width = kLine;
    const double copied = 4 * dim * vectors * width;
    if (op.kind == SDK_ATTENTION) {
      scratch(copied + 4 * (vectors + more) * width);
      plan_.work +=
          2.0 * op.heads * pixels(x) * (vectors + more) * dim * static_cast<double>(lanes_);
    } else {
      scratch(copied + dim * (dim + 10) * width);
      plan_.work +=
          2.0 * op.heads * dim * dim * (vectors + more + width) * static_cast<double>(lanes_);
    }
  }

  static bool is_group(int32_t group) {
    return group == 1 || group == 2 || group == 4 || group == 8 || group == 16;
  }

  // Panels whose entries are counted right; the number of entries.
  int64_t panels(int32_t group, int64_t count, const int64_t *ptr, const WeightCounts &n) const {
    need(is_group(group), "the group of panels");
    need(count >= 0 && count <= kMostFloats && n.panel_ptr == count + 1 && n.slot == count * group,
         "the number of panels");
    const int64_t entries = ptr[count];
    need(entries >= 0 && entries == n.offset && entries <= kMostFloats &&
             n.value == entries * group && ptr[0] == 0,
         "the entries of panels");
    for (int64_t p = 0; p < count; ++p) need(ptr[p] <= ptr[p + 1], "the entries of a panel");
    return entries;
  }

  // Every row in exactly one of the slots.
  void rows(const int32_t *slot, int64_t slots, int64_t wanted) const {
    need(slots >= wanted, "the rows of panels");
    std::vector<bool> seen(static_cast<size_t>(wanted));
    int64_t found = 0;
    for (int64_t i = 0; i < slots; ++i) {
      if (slot[i] == -1) continue;
      need(slot[i] >= 0 && slot[i] < wanted && !seen[static_cast<size_t>(slot[i])],
           "the rows of panels");
      seen[static_cast<size_t>(slot[i])] = true;
      ++found;
    }
    need(found == wanted, "the rows of panels");
  }

  void within(const int32_t *offset, int64_t entries, int64_t low, int64_t high) const {
    if (entries == 0) return;
    const auto ends = std::minmax_element(offset, offset + entries);
    need(*ends.first >= low && *ends.second <= high, "the offset of an entry");
  }

  void conv(const sdk_op &op, const OperationCounts &n) {
    const sdk_tensor &x = op.x, &out = op.out;
    const int64_t entries = panels(op.group, op.panels, op.panel_ptr,
                                   {n.panel_ptr, n.offset, n.value, n.slot, 0});
    rows(op.slot, n.slot, out.channels);
    need(n.b == 0 && (n.a == 0 || (n.a == out.channels && op.film < 0)), "the bias of a convolution");
    film(op.film, out.channels);
    need(op.size >= 1 && op.size <= kMostSize && op.size % 2 == 1, "the size of a convolution");
    const double area = floats(out) / out.channels;
    plan_.work += static_cast<double>(entries) * op.group * (area + kLine);
    // Tiles, each of a vector of four at least, and the sums of an image that is one run.
    const double length = static_cast<double>(image(x) + image(out) + 2 * kLine);
    plan_.memory += length * 8 + 16.0 * static_cast<double>(n.slot);
    scratch(op.group * length);
    if (op.copies == 0) {
      need(op.upsample == 0 && same_image(x, out), "the shape of a convolution");
      const int64_t most = x.channels * x.channel_stride - x.channel_lead - image(x) - kLine;
      return within(op.offset, entries, -x.channel_lead, most);
    }
    const int64_t taps = int64_t{op.size} * op.size;
    need(lanes_ == 1 && op.size <= kMostCopiedSize && (op.copies == op.size || op.copies == taps),
         "the copies of a convolution");
    need(op.upsample == 1 ? twice(out, x) : same_image(x, out), "the shape of a convolution");
    within(op.offset, entries, 0, x.channels * taps - 1);
    const double every = static_cast<double>(x.channels) * op.copies;
    const double row = static_cast<double>(out.width) * static_cast<double>(lanes_);
    const double one = (out.height + op.size) * row + 3 * kLine;
    scratch(std::min(static_cast<double>(entries), every) * one + 2 * one + op.group * length);
    plan_.memory += every * 12 + static_cast<double>(taps) * (one + row) * 4 +
                    16.0 * static_cast<double>(entries);
    plan_.work += every * one;
  }

  // A 1x1 convolution on rows of a block, of which it reads the first `columns`.
  int64_t block_weight(const sdk_weight &w, const WeightCounts &n, const sdk_linear_block &b,
                       int64_t columns) const {
    const int64_t entries = panels(w.group, w.panels, w.panel_ptr, n);
    need(n.bias == n.slot, "the bias of a block");
    for (int64_t k = 0; k < entries; ++k)
      need(w.offset[k] >= 0 && w.offset[k] % b.stride == 0 && w.offset[k] / b.stride < columns,
           "the offset of an entry");
    return entries * w.group;
  }

  void linear_block(const sdk_op &op, const OperationCounts &n) {
    const sdk_linear_block &b = *op.block;
    const BlockCounts &c = blocks_[static_cast<size_t>(op.block - plan_.blocks.data())];
    const sdk_tensor &x = op.x;
    const bool apply = op.kind == SDK_LINEAR_APPLY;
    if (apply) need(same_image(x, op.out), "the shape of a block");
    need(n.a == (apply ? op.out.channels : 0) && n.b == 0, "the gain of a block");
    need(b.heads >= 0 && b.heads <= kMostSide && c.head == 8 * int64_t{b.heads} &&
             b.dim_head >= 1 && b.dim_head <= kMostSide && std::isfinite(b.eps) && b.eps >= 0.0,
         "heads of a block");
    need(b.pixels >= 1 && b.pixels <= kMostSide &&
             b.stride == b.pixels * (lanes_ == 1 ? 1 : kLine) && b.stride % kLine == 0,
         "the pixels of a block");
    const int64_t blocks = (int64_t{x.height} * x.width + b.pixels - 1) / b.pixels;
    need(b.chunks >= 1 && b.chunks <= blocks, "the chunks of a block");
    need(b.slot_numbers >= 0 && b.slot_numbers <= arena_, "the contexts of a block");
    const int64_t slot =
        lanes_ == 1 ? (b.slot_numbers + kLine - 1) / kLine * kLine : b.slot_numbers * lanes_;
    need(b.context >= 0 && b.context <= arena_ &&
             (slot == 0 || b.chunks <= (arena_ - b.context) / slot),
         "the contexts of a block");
    int64_t first_q = 0, first_k = 0, first_v = 0, v_rows = 0, q_most = 0, k_most = 0, v_most = 0;
    double products = 0;
    const int64_t columns = x.channels;
    double weights = static_cast<double>(block_weight(b.q, c.q, b, columns)) +
                     static_cast<double>(block_weight(b.k, c.k, b, columns)) +
                     static_cast<double>(block_weight(b.v, c.v, b, columns));
    for (int32_t h = 0; h < b.heads; ++h) {
      const sdk_linear_head &head = b.head[h];
      need(head.both >= 0 && head.both <= head.q_rows && head.both <= head.k_rows &&
               head.q_rows <= b.dim_head && head.k_rows <= b.dim_head && head.v_rows >= 0 &&
               head.v_rows <= b.dim_head,
           "the rows of a head");
      const int64_t numbers = (int64_t{head.k_rows} + 2) * (int64_t{head.v_rows} + 1);
      need(head.context >= 0 && head.context + numbers <= b.slot_numbers, "the context of a head");
      head_rows(b.q, head.q_panels, head.q_rows, first_q);
      head_rows(b.k, head.k_panels, head.k_rows, first_k);
      head_rows(b.v, head.v_panels, head.v_rows, first_v);
      v_rows += head.v_rows;
      q_most = std::max<int64_t>(q_most, head.q_rows + 2);
      k_most = std::max<int64_t>(k_most, head.k_rows + 1);
      v_most = std::max<int64_t>(v_most, head.v_rows);
      products += static_cast<double>(numbers);
    }
    need(first_q == b.q.panels && first_k == b.k.panels && first_v == b.v.panels,
         "the panels of heads");
    weights += static_cast<double>(block_weight(b.out, c.out, b, v_rows));
    const int64_t out_channels = apply ? op.out.channels : 0;
    if (apply) rows(b.out.slot, c.out.slot, out_channels);
    const double most = static_cast<double>(std::max<int64_t>(x.channels, out_channels));
    const double lines = most + 1 + static_cast<double>(q_most + k_most + v_most + v_rows);
    scratch(lines * b.stride + static_cast<double>(b.dim_head) * kLine);
    plan_.memory += 16.0 * static_cast<double>(c.q.panel_ptr + c.k.panel_ptr + c.v.panel_ptr);
    plan_.work += (weights + 4 * products + lines) * static_cast<double>(blocks) * b.stride;
    plan_.work += products * b.chunks * static_cast<double>(lanes_);
  }

  // The panels of one head, from `first` on, which moves behind them.
  void head_rows(const sdk_weight &w, int32_t count, int32_t wanted, int64_t &first) const {
    need(count >= 0 && count <= w.panels - first, "the panels of a head");
    rows(w.slot + first * w.group, int64_t{count} * w.group, wanted);
    first += count;
  }

  Plan &plan_;
  const std::vector<OperationCounts> &counts_;
  const std::vector<BlockCounts> &blocks_;
  const Model &model_;
  const Limits &limits_;
  const int64_t lanes_, arena_;
  int64_t index_ = -1;
  double scratch_ = 0;  // floats of a thread, at most
  double moments_ = 0;  // floats, at most
};

}  // namespace

void check_plan(Plan &plan, const std::vector<OperationCounts> &operations,
                const std::vector<BlockCounts> &blocks, const Model &model, const Limits &limits) {
  Checker(plan, operations, blocks, model, limits).run();
}

}  // namespace sdk
