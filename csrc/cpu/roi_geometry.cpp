#include "cpu/roi_geometry.h"

#include <algorithm>
#include <cmath>

namespace atrousops::cpu {

// Where the samples of one axis lie. The order of operations is torchvision's, so that ceil() and the border tests
// fall the same way as there. G: the type of the geometry.
template <class G>
struct Samples {
  Samples(G from, G to, int64_t size, int64_t bins, const RoiAlignShape& shape) : size(size) {
    const G scale = static_cast<G>(shape.spatial_scale), offset = shape.aligned ? G(0.5) : G(0);
    start = from * scale - offset;
    G length = (to * scale - offset) - start;
    if (!shape.aligned) length = std::max(length, G(1));
    bin = length / static_cast<G>(bins);
    // No box is sampled more finely than an int64 can count.
    per_bin = shape.sampling_ratio > 0 ? shape.sampling_ratio
                                       : static_cast<int64_t>(std::min(std::ceil(bin), static_cast<G>(1e18)));
  }

  G position(int64_t b, int64_t i) const {
    return start + static_cast<G>(b) * bin + (static_cast<G>(i) + G(0.5)) * bin / static_cast<G>(per_bin);
  }

  // Samples [begin, end) of bin b contain all that lie on the map; all of them unless there are very many.
  std::pair<int64_t, int64_t> candidates(int64_t b) const {
    if (per_bin <= 4096 || !(bin > 0)) return {0, per_bin};
    const double step = static_cast<double>(bin) / static_cast<double>(per_bin);
    const double first = start + static_cast<double>(b) * bin;
    const auto clamp = [&](double i) { return std::clamp(i, 0.0, static_cast<double>(per_bin)); };
    return {static_cast<int64_t>(clamp((-1 - first) / step - 4)),
            static_cast<int64_t>(clamp((static_cast<double>(size) - first) / step + 4))};
  }

  G start, bin;
  int64_t size, per_bin;
};

// Calls f(index, weight) for the one or two pixels that a sample reads; outside [-1, size] it reads none.
template <class G, class F>
static void interpolate(G position, int64_t size, const F& f) {
  if (!(position >= G(-1) && position <= static_cast<G>(size)) || size == 0) return;
  position = std::max(position, G(0));
  const int32_t low = static_cast<int32_t>(position);
  if (low >= size - 1) {
    f(static_cast<int32_t>(size - 1), G(1));
    return;
  }
  const G fraction = position - static_cast<G>(low);
  f(low, G(1) - fraction);
  f(low + 1, fraction);
}

// The place of `value` in list[begin ..], appended if it is new. Samples move forwards, so it is near the end.
static int64_t place(std::vector<int32_t>& list, int64_t begin, int32_t value) {
  int64_t i = static_cast<int64_t>(list.size()) - 1;
  while (i >= begin && list[i] > value) --i;
  if (i >= begin && list[i] == value) return i;
  list.insert(list.begin() + (i + 1), value);
  return i + 1;
}

// One bin's sparse row: the weights of its samples summed by pixel, over their number.
template <class G, class W, class F>
static void add_bin(const Samples<G>& samples, int64_t b, std::vector<int32_t>& index, std::vector<W>& weight,
                    std::vector<double>& sums, const F& index_of) {
  const int64_t begin = static_cast<int64_t>(index.size());
  sums.clear();
  const auto [first, last] = samples.candidates(b);
  for (int64_t i = first; i < last; ++i)
    interpolate(samples.position(b, i), samples.size, [&](int32_t pixel, G w) {
      const int64_t before = static_cast<int64_t>(index.size());
      const int64_t at = place(index, begin, index_of(pixel)) - begin;
      if (static_cast<int64_t>(index.size()) > before) sums.insert(sums.begin() + at, 0.0);
      sums[at] += w;
    });
  for (const double sum : sums) weight.push_back(static_cast<W>(sum / static_cast<double>(samples.per_bin)));
}

template <class W>
template <class G>
void RoiAlignGeometry<W>::add(const std::array<double, 4>& corners, const RoiAlignShape& s) {
  std::vector<double> sums;
  const Samples<G> y(static_cast<G>(corners[1]), static_cast<G>(corners[3]), s.height, s.pooled_height, s);
  const Samples<G> x(static_cast<G>(corners[0]), static_cast<G>(corners[2]), s.width, s.pooled_width, s);
  const int64_t rows_before = static_cast<int64_t>(row.size());
  for (int64_t p = 0; p < s.pooled_height; ++p) {
    add_bin(y, p, row, row_weight, sums, [](int32_t pixel) { return pixel; });
    row_first.push_back(static_cast<int64_t>(row.size()));
  }
  // Two passes, because the list of columns has to be complete before a position in it is final.
  const int64_t begin = static_cast<int64_t>(list.size());
  for (int64_t q = 0; q < s.pooled_width; ++q) {
    const auto [first, last] = x.candidates(q);
    for (int64_t i = first; i < last; ++i)
      interpolate(x.position(q, i), s.width, [&](int32_t pixel, G) { place(list, begin, pixel); });
  }
  for (int64_t q = 0; q < s.pooled_width; ++q) {
    add_bin(x, q, column, column_weight, sums, [&](int32_t pixel) {
      return static_cast<int32_t>(std::lower_bound(list.begin() + begin, list.end(), pixel) - list.begin() - begin);
    });
    column_first.push_back(static_cast<int64_t>(column.size()));
  }
  list_first.push_back(static_cast<int64_t>(list.size()));
  const int64_t columns = static_cast<int64_t>(list.size()) - begin;
  most_columns = std::max(most_columns, columns);
  feature_reads += (static_cast<int64_t>(row.size()) - rows_before) * columns;
}

template <class W>
RoiAlignGeometry<W>::RoiAlignGeometry(const Boxes& boxes, const RoiAlignShape& shape) {
  for (const auto& corners : boxes.corners) {
    if (boxes.is_double || sizeof(W) == sizeof(double))
      add<double>(corners, shape);
    else
      add<float>(corners, shape);
  }
}

template struct RoiAlignGeometry<float>;
template struct RoiAlignGeometry<double>;

}  // namespace atrousops::cpu
