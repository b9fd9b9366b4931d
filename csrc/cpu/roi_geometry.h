// Sample positions and weights of RoIAlign, once per RoI.
#pragma once

#include "cpu/roi_align.h"
#include "cpu/roi_boxes.h"

namespace atrousops::cpu {

struct RoiAlignShape {
  int64_t height, width, pooled_height, pooled_width;
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
};

// W: the compute type of the features. The arrays behind RoiTaps.
template <class W>
struct RoiAlignGeometry {
  RoiAlignGeometry(const Boxes& boxes, const RoiAlignShape& shape);

  std::vector<int64_t> row_first{0}, column_first{0}, list_first{0};
  std::vector<int32_t> row, column, list;
  std::vector<W> row_weight, column_weight;
  int64_t most_columns = 0;
  int64_t feature_reads = 0;  // pixels that the forward pass reads, with repetitions

 private:
  template <class G>
  void add(const std::array<double, 4>& corners, const RoiAlignShape& shape);
};

extern template struct RoiAlignGeometry<float>;
extern template struct RoiAlignGeometry<double>;

}  // namespace atrousops::cpu
