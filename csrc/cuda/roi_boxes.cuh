// Boxes (image, x1, y1, x2, y2) on the device. Nobody on the host may look at them, so a box that the CPU operators
// refuse is answered here: its output is NaN, and it sends no gradient.
#pragma once

#include <climits>

#include "cuda/platform.h"
#include "cuda/rounded.h"
#include "stable/tensor.h"

namespace atrousops::cuda {

// G: the type of the geometry, double if the boxes or the features are.
template <class G>
struct Box {
  G x1, y1, x2, y2;
  int64_t image;  // -1 for a box to refuse
};

// (K, 5) rows, float or double.
struct BoxRows {
  const void* rows;
  bool is_double;
  int64_t count;
  int64_t images;

  template <class G>
  __device__ __forceinline__ Box<G> read(int64_t k) const {
    G v[5];
    for (int i = 0; i < 5; ++i)
      v[i] = is_double ? static_cast<G>(static_cast<const double*>(rows)[5 * k + i])
                       : static_cast<G>(static_cast<const float*>(rows)[5 * k + i]);
    bool good = v[1] <= v[3] && v[2] <= v[4] && v[0] >= G(0) && v[0] < static_cast<G>(images);
    // Differences of infinities and of NaN are NaN.
    for (int i = 1; i < 5; ++i) good = good && v[i] - v[i] == G(0);
    const int64_t image = good ? static_cast<int64_t>(v[0]) : -1;
    good = good && static_cast<G>(image) == v[0];
    return {v[1], v[2], v[3], v[4], good ? image : -1};
  }
};

// What a RoI reads of its image's map: rows [y0, y1), columns [x0, x1).
struct RoiBounds {
  int32_t image, y0, y1, x0, x1;
};

inline void check_boxes(const char* op, const Tensor& boxes) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 5, op, ": boxes must have shape (K, 5)");
  STD_TORCH_CHECK(boxes.scalar_type() == ScalarType::Float || boxes.scalar_type() == ScalarType::Double, op,
                  ": boxes must be float32 or float64");
  STD_TORCH_CHECK(boxes.size(0) < INT32_MAX, op, ": there must be fewer than 2^31 boxes");
}

inline void check_feature_map(const char* op, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4, op, ": input must have shape (N, C, H, W)");
  STD_TORCH_CHECK(t.size(2) > 0 && t.size(3) > 0, op, ": input must have pixels");
  STD_TORCH_CHECK(t.size(0) < INT32_MAX && t.size(2) < INT32_MAX / t.size(3), op,
                  ": input must have fewer than 2^31 pixels a plane");
}

// Items of one RoI are counted in 32 bits.
inline void check_pooled(const char* op, int64_t channels, int64_t height, int64_t width) {
  STD_TORCH_CHECK(height > 0 && width > 0 && height < (1 << 15) && width < (1 << 15) &&
                      channels * height * width < INT32_MAX - (1 << 20),
                  op, ": the output of one box must have fewer than 2^31 elements, and 2^15 bins an axis");
}

inline BoxRows box_rows(const Tensor& dense_boxes, int64_t images) {
  return {dense_boxes.const_data_ptr(), dense_boxes.scalar_type() == ScalarType::Double, dense_boxes.size(0), images};
}

}  // namespace atrousops::cuda
