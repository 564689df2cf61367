#include "tiles.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>

namespace sdk {
namespace {

constexpr int64_t kLine = 16;  // floats
// Floats before and after an image that may be read.
constexpr int64_t kReach = 15;
// Rows are whole vectors on every instruction set, so that all of them cut images alike.
constexpr int64_t kRowUnit = 16;
// Vectors of a tile from which more save nothing: images of two such are cut for two threads, each
// of which then copies and reads its own half.
constexpr int64_t kTallEnough = 8;
// Units of work per thread, so that a thread that is interrupted holds the others up little ...
constexpr int64_t kUnitsPerThread = 8;
// Units that an image is cut into, where it has as many tiles.
constexpr int64_t kSpans = 16;
// ... but none shorter than a microsecond: vector multiply-adds.
constexpr int64_t kUnitWork = 2048;

bool contiguous(const sdk_tensor &t, int64_t lanes) { return t.row_stride == t.width * lanes; }

// Panels cut where the work (entries, plus the cost of starting a panel) is about equal.
std::vector<int64_t> cut_panels(const sdk_op &op, int64_t blocks) {
  const auto work = [&](int64_t panel) { return op.panel_ptr[panel] + 4 * panel; };
  const int64_t total = work(op.panels);
  std::vector<int64_t> cut{0};
  int64_t panel = 0;
  for (int64_t b = 1; b < blocks; ++b) {
    while (panel < op.panels && work(panel) * blocks < total * b) ++panel;
    if (panel > cut.back() && panel < op.panels) cut.push_back(panel);
  }
  cut.push_back(op.panels);
  return cut;
}

// Rows of the image of which a tile makes some.
using Rows = std::vector<TapRows>;

// Register tiles of at most `limit` vectors over an image of `height` rows of `vectors` vectors, and
// which rows of the image, `image_row` floats each, they make.
Rows cut_image(const sdk_op &op, const Kernels &kernels, int32_t group, int64_t height,
               int64_t vectors, int64_t limit, int64_t image_row, Tiling &tiling) {
  Rows made;
  const int64_t vector = kernels.vector, strips = (vectors + limit - 1) / limit;
  std::vector<int64_t> start;  // of each strip of columns, in vectors
  for (int64_t s = 0; s <= strips; ++s) start.push_back(vectors * s / strips);
  int64_t most_rows = 1;
  while (2 * most_rows * (start[1] - start[0]) <= limit) most_rows *= 2;
  for (int64_t h = 0; h < height;) {
    int64_t rows = most_rows;
    while (rows > height - h) rows /= 2;
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t width = start[s + 1] - start[s], column = start[s] * vector;
      // Strips differ by one vector at most; the wider ones may not fit that many rows.
      for (int64_t r = 0; r < rows;) {
        int64_t now = rows - r;
        while (now * width > limit) now /= 2;
        const int64_t at = h + r;
        tiling.tiles.push_back(
            {kernels.tile(group, static_cast<int32_t>(now), static_cast<int32_t>(width)),
             at * tiling.x_row + column, at * op.out.row_stride + column,
             at * op.y.row_stride + column});
        const int64_t begin = at * image_row + column;
        const int64_t end = (at + now - 1) * image_row + column + width * vector;
        made.push_back({begin / image_row, (end + image_row - 1) / image_row});
        r += now;
      }
    }
    h += rows;
  }
  tiling.vectors = height * vectors;
  tiling.widest = most_rows * (start[1] - start[0]);
  return made;
}

// What the tiles of each span read of copies of the image. Those with shifted columns alone are read
// above and below.
Rows rows_read(const sdk_op &op, const Tiling &tiling, const Rows &made) {
  const int64_t above = op.copies == op.size ? op.size / 2 : 0;
  if (tiling.flat) return {{-above, op.out.height + above}};
  Rows read;
  for (size_t i = 0; i < made.size(); ++i) {
    const TapRows rows = {made[i].first - above, made[i].last + above};
    if (static_cast<int64_t>(i) % tiling.span == 0) read.push_back(rows);
    read.back().first = std::min(read.back().first, rows.first);
    read.back().last = std::max(read.back().last, rows.last);
  }
  return read;
}

}  // namespace

Tiling make_tiling(const sdk_op &op, int64_t lanes, int threads, const Kernels &kernels) {
  Tiling tiling;
  const int64_t vector = kernels.vector, image_row = op.out.width * lanes;
  int64_t height = op.out.height, row = image_row;
  const bool residual = op.y.channels > 0, copies = op.copies > 0;
  tiling.x_row = copies ? image_row : op.x.row_stride;
  if ((copies || contiguous(op.x, lanes)) && contiguous(op.out, lanes) &&
      (!residual || contiguous(op.y, lanes))) {
    row *= height;  // no halo anywhere: the image is one row
    height = 1;
  }
  if (row % kRowUnit != 0) {
    tiling.flat = true;
    row = (op.out.height - 1) * tiling.x_row + op.out.width * lanes;
    row = (row + vector - 1) / vector * vector;
    height = 1;
    tiling.flat_floats = row;
  }
  const int32_t group = std::min(op.group, kernels.max_group);
  int index = 0;
  while ((1 << index) < group) ++index;
  const int64_t vectors = row / vector;
  int64_t limit = kernels.tile_limit[index];
  if (copies && !tiling.flat && height == 1)
    limit = std::min(limit, std::max(kTallEnough, (vectors + 1) / 2));
  const Rows made = cut_image(op, kernels, group, height, vectors, limit, image_row, tiling);
  const auto tiles = static_cast<int64_t>(tiling.tiles.size());
  // The same for any number of threads, as sums over a span depend on it. Images whose rows are
  // shifted too are small, and copied whole.
  tiling.span = op.copies > op.size ? tiles : (tiles + kSpans - 1) / kSpans;
  if (copies) tiling.tap_rows = rows_read(op, tiling, made);
  const int64_t work = op.panel_ptr[op.panels] * op.group * tiling.vectors;
  int64_t blocks = 1;
  if (threads > 1) {
    const int64_t spans = tiling.flat ? 1 : tiling.spans(), wanted = kUnitsPerThread * threads;
    blocks = std::min((wanted + spans - 1) / spans, work / spans / kUnitWork);
  }
  blocks = std::max<int64_t>(1, std::min(blocks, op.panels));
  tiling.block = cut_panels(op, blocks);
  return tiling;
}

int64_t Tiling::spans() const {
  return (static_cast<int64_t>(tiles.size()) + span - 1) / span;
}

Copies make_copies(const sdk_op &op, const Tiling &tiling, int64_t lanes, int64_t vector) {
  Copies made;
  const int64_t height = op.out.height, width = op.out.width, row = width * lanes;
  const int64_t size = op.size, middle = size / 2, entries = op.panel_ptr[op.panels];
  const bool rows = op.copies != size;
  for (int64_t r = rows ? -middle : 0; r <= (rows ? middle : 0); ++r)
    for (int64_t s = -middle; s <= middle; ++s) made.shift.push_back({r, s, r * row + s * lanes});
  int64_t longest = 0;
  for (const TapRows &span : tiling.tap_rows) longest = std::max(longest, span.last - span.first);
  // An odd number of lines, so that copies spread over all sets of the caches.
  made.floats = ((longest * row + kLine - 1) / kLine | 1) * kLine;
  made.doubled = op.upsample ? longest * row : 0;
  const auto copy_of = [&](int64_t column) {
    const int64_t channel = column / (size * size), tap = column % (size * size);
    return static_cast<size_t>(channel * op.copies + (rows ? tap : tap % size));
  };
  std::vector<int32_t> place(static_cast<size_t>(op.x.channels) * static_cast<size_t>(op.copies));
  for (int64_t k = 0; k < entries; ++k) place[copy_of(op.offset[k])] = 1;
  for (size_t i = 0; i < place.size(); ++i)
    if (place[i] != 0) {
      place[i] = static_cast<int32_t>(made.copy.size());
      const auto copy = static_cast<int32_t>(i);
      made.copy.push_back({copy / op.copies, copy % op.copies});
    }
  if (static_cast<int64_t>(made.copy.size()) * made.floats > INT32_MAX)
    throw std::invalid_argument("shifted copies are too large for 32-bit offsets");
  for (int64_t k = 0; k < entries; ++k) {
    const int64_t tap = op.offset[k] % (size * size), moved = rows ? 0 : (tap / size - middle) * row;
    made.offset.push_back(
        static_cast<int32_t>(place[copy_of(op.offset[k])] * made.floats + moved));
  }
  const bool aligned = row % vector == 0 || vector % row == 0;
  const int64_t reach = (rows ? middle * row : 0) + middle * lanes;
  const bool gaps = op.x.row_stride != row && !op.upsample;
  if (gaps || !aligned || height * row % vector != 0 || reach > kReach) return made;
  made.period = rows ? height * row : std::max(row, vector);
  for (const Shift &shift : made.shift)
    for (int64_t i = 0; i < made.period; ++i) {
      const int64_t h = i / row + shift.rows, w = i % row / lanes + shift.columns;
      const bool inside = w >= 0 && w < width && (!rows || (h >= 0 && h < height));
      made.keep.push_back(inside ? -1 : 0);
    }
  return made;
}

}  // namespace sdk
