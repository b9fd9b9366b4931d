// Boxes (image, x1, y1, x2, y2) as the RoI operators read them: checked, and sorted by image.
#pragma once

#include <array>
#include <vector>

#include "stable/tensor.h"

namespace atrousops::cpu {

struct Boxes {
  // float32 corners are exact in double; `is_double` gives the type for a kernel's geometry.
  std::vector<std::array<double, 4>> corners;
  bool is_double;
  // RoIs of image n, in their original order: by_image[first[n]] .. by_image[first[n + 1]].
  std::vector<int64_t> by_image;
  std::vector<int64_t> first;
};

// Reads (K, 5) float32 or float64 boxes. Throws for another shape or dtype, corners that are not finite or are
// inverted, and an image outside [0, batch).
Boxes read_boxes(const char* op, const Tensor& boxes, int64_t batch);

// Throws unless `t` is (N, C, H, W) with a plane that 32 bits can index.
void check_feature_map(const char* op, const Tensor& t);

// Throws unless `t` has this shape.
void check_shape(const char* op, const char* argument, const Tensor& t, const std::vector<int64_t>& expected);

}  // namespace atrousops::cpu
