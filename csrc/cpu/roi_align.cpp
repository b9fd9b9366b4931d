// roi_align and its gradient in the features (He et al., Mask R-CNN, arXiv:1703.06870).
#include "cpu/roi_align.h"

#include <torch/csrc/stable/library.h>

#include "cpu/huge_pages.h"
#include "cpu/roi_geometry.h"
#include "cpu/roi_launch.h"
#include "stable/implement.h"

namespace atrousops::cpu {

template <class W>
static std::vector<Span> touched_spans(const RoiAlignGeometry<W>& g, const Boxes& boxes, const RoiAlignShape& s) {
  const int64_t batch = static_cast<int64_t>(boxes.first.size()) - 1;
  std::vector<Span> spans(batch * s.height, Span{0, 0});
  for (int64_t n = 0; n < batch; ++n)
    for (int64_t i = boxes.first[n]; i < boxes.first[n + 1]; ++i) {
      const int64_t k = boxes.by_image[i];
      if (g.list_first[k] == g.list_first[k + 1]) continue;
      const int64_t begin = g.list[g.list_first[k]], end = g.list[g.list_first[k + 1] - 1] + 1;
      for (int64_t t = g.row_first[k * s.pooled_height]; t < g.row_first[(k + 1) * s.pooled_height]; ++t)
        widen(spans[n * s.height + g.row[t]], begin, end);
    }
  return spans;
}

template <class W>
static void run(bool is_backward, const Layout& map, const Layout& pooled, const Boxes& boxes, const RoiAlignShape& s) {
  const RoiAlignGeometry<W> g(boxes, s);
  const RoiAlignArgs args{{s.pooled_height, g.row_first.data(), g.row.data(), g.row_weight.data()},
                          {s.pooled_width, g.column_first.data(), g.column.data(), g.column_weight.data()},
                          g.list_first.data(),
                          g.list.data(),
                          g.most_columns};
  const std::vector<Span> spans = touched_spans(g, boxes, s);
  const auto kernel = is_backward ? ATROUSOPS_SELECT(roi_align_backward) : ATROUSOPS_SELECT(roi_align_forward);
  const auto run_block = [&](const RoiBlock& block, const int64_t* rois, int64_t begin, int64_t end) {
    kernel(args, block, rois, begin, end);
  };
  RoiLaunch launch(map, pooled, boxes, spans, g.feature_reads,
                   (g.most_columns + s.pooled_height * s.pooled_width) * kLanes, false);
  if (is_backward)
    launch.backward(run_block);
  else
    launch.forward(run_block);
}

static void run(bool is_backward, const Layout& map, const Layout& pooled, const Boxes& boxes, double spatial_scale,
                int64_t sampling_ratio, bool aligned) {
  const RoiAlignShape s{map.height, map.width, pooled.height, pooled.width, spatial_scale, sampling_ratio, aligned};
  if (map.dtype == ScalarType::Double)
    run<double>(is_backward, map, pooled, boxes, s);
  else
    run<float>(is_backward, map, pooled, boxes, s);
}

Tensor roi_align(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                 int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
  check_feature_map("roi_align", input);
  const Boxes b = read_boxes("roi_align", boxes, input.size(0));
  const bool nhwc = prefers_channels_last(input);
  const Tensor in = dense(input, nhwc);
  const Tensor out = empty({boxes.size(0), in.size(1), pooled_height, pooled_width}, in, nhwc);
  expect_writes(out);
  if (out.numel() > 0) run(false, {in, nhwc}, {out, nhwc}, b, spatial_scale, sampling_ratio, aligned);
  return out;
}

Tensor roi_align_backward(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t batch_size,
                          int64_t channels, int64_t height, int64_t width, int64_t sampling_ratio, bool aligned,
                          bool channels_last) {
  check_feature_map("roi_align_backward", grad);
  check_shape("roi_align_backward", "grad", grad, {boxes.size(0), channels, grad.size(2), grad.size(3)});
  const Boxes b = read_boxes("roi_align_backward", boxes, batch_size);
  const bool nhwc = prefers_channels_last(grad);
  const Tensor pooled = dense(grad, nhwc);
  const Tensor out = empty({batch_size, channels, height, width}, grad, channels_last);
  expect_writes(out);
  if (out.numel() > 0) run(true, {out, channels_last}, {pooled, nhwc}, b, spatial_scale, sampling_ratio, aligned);
  return out;
}

}  // namespace atrousops::cpu

STABLE_TORCH_LIBRARY_IMPL(atrousops, CPU, m) {
  atrousops::implement<"roi_align", &atrousops::cpu::roi_align, "input", "boxes">(m);
  atrousops::implement<"roi_align_backward", &atrousops::cpu::roi_align_backward, "grad", "boxes">(m);
}
