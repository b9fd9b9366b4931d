// roi_pool and its gradient in the features (Girshick, Fast R-CNN, arXiv:1504.08083).
#include "cpu/roi_pool.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>

#include "cpu/roi_launch.h"
#include "stable/implement.h"

namespace atrousops::cpu {

// Clips to a range far outside any map, so that the sums below stay exact.
template <class G>
static int64_t to_pixel(G v) {
  return static_cast<int64_t>(std::clamp(std::round(v), static_cast<G>(-(1 << 30)), static_cast<G>(1 << 30)));
}

// The windows of one axis, in torchvision's order of operations. G: the type of the geometry.
template <class G>
static void add_windows(double from, double to, double spatial_scale, int64_t size, int64_t bins,
                        std::vector<Span>& windows) {
  const G scale = static_cast<G>(spatial_scale);
  const int64_t start = to_pixel(static_cast<G>(from) * scale), end = to_pixel(static_cast<G>(to) * scale);
  const G bin = static_cast<G>(std::max<int64_t>(end - start + 1, 1)) / static_cast<G>(bins);
  for (int64_t b = 0; b < bins; ++b) {
    const int64_t first = static_cast<int64_t>(std::floor(static_cast<G>(b) * bin)) + start;
    const int64_t last = static_cast<int64_t>(std::ceil(static_cast<G>(b + 1) * bin)) + start;
    windows.push_back({std::clamp<int64_t>(first, 0, size), std::clamp<int64_t>(last, 0, size)});
  }
}

struct Windows {
  Windows(const Layout& map, const Layout& pooled, const Boxes& boxes, double spatial_scale)
      : spans(map.batch * map.height, Span{0, 0}) {
    const auto add = boxes.is_double || map.dtype == ScalarType::Double ? &add_windows<double> : &add_windows<float>;
    for (const auto& box : boxes.corners) {
      add(box[1], box[3], spatial_scale, map.height, pooled.height, rows);
      add(box[0], box[2], spatial_scale, map.width, pooled.width, columns);
    }
    for (int64_t n = 0; n < map.batch; ++n)
      for (int64_t i = boxes.first[n]; i < boxes.first[n + 1]; ++i) {
        const int64_t k = boxes.by_image[i];
        const Span y{rows[k * pooled.height].begin, rows[(k + 1) * pooled.height - 1].end};
        const Span x{columns[k * pooled.width].begin, columns[(k + 1) * pooled.width - 1].end};
        for (int64_t row = y.begin; row < y.end; ++row) widen(spans[n * map.height + row], x.begin, x.end);
        reads += std::max<int64_t>(y.end - y.begin, 0) * std::max<int64_t>(x.end - x.begin, 0);
      }
  }

  std::vector<Span> rows, columns, spans;
  int64_t reads = 0;
};

static void run(bool is_backward, const Layout& map, const Layout& pooled, const Tensor& argmax, const Boxes& boxes,
                double spatial_scale) {
  const Windows windows(map, pooled, boxes, spatial_scale);
  const RoiPoolArgs common{pooled.height, pooled.width, windows.rows.data(), windows.columns.data(),
                           static_cast<int32_t*>(argmax.mutable_data_ptr())};
  const auto kernel = is_backward ? ATROUSOPS_SELECT(roi_pool_backward) : ATROUSOPS_SELECT(roi_pool_forward);
  const auto run_block = [&](const RoiBlock& block, const int64_t* rois, int64_t begin, int64_t end) {
    RoiPoolArgs args = common;
    args.argmax += (static_cast<char*>(block.pooled) - pooled.base) / pooled.element;
    kernel(args, block, rois, begin, end);
  };
  RoiLaunch launch(map, pooled, boxes, windows.spans, windows.reads, 0, true);
  if (is_backward)
    launch.backward(run_block);
  else
    launch.forward(run_block);
}

std::tuple<Tensor, Tensor> roi_pool(const Tensor& input, const Tensor& boxes, double spatial_scale,
                                    int64_t pooled_height, int64_t pooled_width) {
  check_feature_map("roi_pool", input);
  const Boxes b = read_boxes("roi_pool", boxes, input.size(0));
  const bool nhwc = prefers_channels_last(input);
  const Tensor in = dense(input, nhwc);
  const std::vector<int64_t> size = {boxes.size(0), in.size(1), pooled_height, pooled_width};
  const Tensor out = empty(size, in, nhwc), argmax = empty(size, in, nhwc, ScalarType::Int);
  if (out.numel() > 0) run(false, {in, nhwc}, {out, nhwc}, argmax, b, spatial_scale);
  return {out, argmax};
}

Tensor roi_pool_backward(const Tensor& grad, const Tensor& boxes, const Tensor& argmax, double spatial_scale,
                         int64_t batch_size, int64_t channels, int64_t height, int64_t width, bool channels_last) {
  check_feature_map("roi_pool_backward", grad);
  check_shape("roi_pool_backward", "grad", grad, {boxes.size(0), channels, grad.size(2), grad.size(3)});
  check_shape("roi_pool_backward", "argmax", argmax, sizes_of(grad));
  if (argmax.scalar_type() != ScalarType::Int) bad_value("roi_pool_backward: argmax must be int32");
  const Boxes b = read_boxes("roi_pool_backward", boxes, batch_size);
  const bool nhwc = prefers_channels_last(grad);
  const Tensor pooled = dense(grad, nhwc), at = dense(argmax, nhwc);
  const Tensor out = empty({batch_size, channels, height, width}, grad, channels_last);
  if (out.numel() > 0) run(true, {out, channels_last}, {pooled, nhwc}, at, b, spatial_scale);
  return out;
}

}  // namespace atrousops::cpu

STABLE_TORCH_LIBRARY_IMPL(atrousops, CPU, m) {
  atrousops::implement<"roi_pool", &atrousops::cpu::roi_pool, "input", "boxes">(m);
  atrousops::implement<"roi_pool_backward", &atrousops::cpu::roi_pool_backward, "grad", "boxes", "argmax">(m);
}
