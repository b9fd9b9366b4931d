// From tensors and argument lists to PoolGeometry, with the checks that keep the kernels inside their memory. The
// messages for users are in atrousops/ops; these are for callers of torch.ops.
#pragma once

#include <array>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "stable/implement.h"
#include "stable/pool.h"
#include "stable/tensor.h"

namespace atrousops {

// The minimum number of taps per worker.
constexpr int64_t kPoolGrain = 1 << 15;

struct PoolArguments {
  const std::vector<int64_t>&kernel_size, &stride, &padding, &dilation;
  int64_t axes() const { return static_cast<int64_t>(kernel_size.size()); }
};

inline bool is_batched(const Tensor& t, const PoolArguments& args) { return t.dim() == args.axes() + 2; }

// Everything except the sizes of the two maps; `map` is either of them.
inline PoolGeometry window_geometry(const char* op, const Tensor& map, const PoolArguments& args) {
  const int64_t axes = args.axes();
  STD_TORCH_CHECK(axes >= 1 && axes <= 3 && args.stride.size() == args.kernel_size.size() &&
                      args.padding.size() == args.kernel_size.size() && args.dilation.size() == args.kernel_size.size(),
                  op, ": kernel_size, stride, padding and dilation must have one to three numbers, all as many");
  STD_TORCH_CHECK(map.dim() == axes + 1 || map.dim() == axes + 2, op, ": a tensor of ", axes + 1, " or ", axes + 2,
                  " dimensions is expected; got ", map.dim());
  PoolGeometry g{};
  const bool batched = is_batched(map, args);
  g.batch = batched ? map.size(0) : 1;
  g.channels = map.size(batched ? 1 : 0);
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t from = i - (3 - axes);
    g.kernel[i] = from < 0 ? 1 : args.kernel_size[from];
    g.stride[i] = from < 0 ? 1 : args.stride[from];
    g.padding[i] = from < 0 ? 0 : args.padding[from];
    g.dilation[i] = from < 0 ? 1 : args.dilation[from];
    g.large[i] = g.small[i] = 1;
    STD_TORCH_CHECK(g.kernel[i] > 0 && g.stride[i] > 0 && g.dilation[i] > 0 && g.padding[i] >= 0, op,
                    ": kernel_size, stride and dilation must be positive, padding not negative");
  }
  return g;
}

// Copies the spatial sizes of `map` to three axes.
inline void spatial(const Tensor& map, const PoolArguments& args, int64_t (&size)[3]) {
  for (int64_t i = 0; i < args.axes(); ++i) size[3 - args.axes() + i] = map.size(map.dim() - args.axes() + i);
}

// Geometry of pooling `input`, with PyTorch's rule for the output size: with ceil_mode a last window may extend beyond
// the edge, if it starts inside the map or its left padding.
inline PoolGeometry pooled_geometry(const char* op, const Tensor& input, const PoolArguments& args, bool ceil_mode) {
  PoolGeometry g = window_geometry(op, input, args);
  spatial(input, args, g.large);
  for (int i = 0; i < 3; ++i) {
    const int64_t extent = (g.kernel[i] - 1) * g.dilation[i] + 1;
    STD_TORCH_CHECK(2 * g.padding[i] <= extent, op, ": padding must be at most half of the window");
    const int64_t room = g.large[i] + 2 * g.padding[i] - extent + (ceil_mode ? g.stride[i] - 1 : 0);
    STD_TORCH_CHECK(room >= 0 && g.large[i] > 0, op, ": the window is larger than the padded input");
    g.small[i] = room / g.stride[i] + 1;
    if (ceil_mode && (g.small[i] - 1) * g.stride[i] >= g.large[i] + g.padding[i]) --g.small[i];
  }
  return g;
}

// The size of `map` with other spatial sizes.
inline std::vector<int64_t> size_with(const Tensor& map, const PoolArguments& args, const int64_t (&spatial)[3]) {
  std::vector<int64_t> size = sizes_of(map);
  for (int64_t i = 0; i < args.axes(); ++i) size[size.size() - args.axes() + i] = spatial[3 - args.axes() + i];
  return size;
}

// Positions of maxima: int64 indices or one-byte codes.
inline Marks kind_of(const char* op, const Tensor& marks) {
  STD_TORCH_CHECK(marks.scalar_type() == ScalarType::Long || marks.scalar_type() == ScalarType::Byte, op,
                  ": indices must be int64, or uint8 codes; got ScalarType ", static_cast<int>(marks.scalar_type()));
  return marks.scalar_type() == ScalarType::Long ? Marks::indices : Marks::codes;
}

inline void check_marks(const char* op, const Tensor& small, const Tensor& marks) {
  bool same = small.dim() == marks.dim();
  for (int64_t i = 0; same && i < small.dim(); ++i) same = small.size(i) == marks.size(i);
  STD_TORCH_CHECK(same, op, ": indices must have the shape of the map of windows");
}

// Geometry of placing the values of a map of windows in a large one.
inline PoolGeometry placed_geometry(const char* op, const Tensor& small, const Tensor& marks,
                                    const std::vector<int64_t>& large_size, const PoolArguments& args) {
  check_marks(op, small, marks);
  PoolGeometry g = window_geometry(op, small, args);
  STD_TORCH_CHECK(static_cast<int64_t>(large_size.size()) == args.axes(), op, ": output_size must have ", args.axes(),
                  " numbers");
  spatial(small, args, g.small);
  for (int64_t i = 0; i < args.axes(); ++i) {
    STD_TORCH_CHECK(large_size[i] >= 0, op, ": output_size must not be negative; got ", large_size[i]);
    g.large[3 - args.axes() + i] = large_size[i];
  }
  return g;
}

// Inputs and outputs of pooling; without marks for Marks::none.
struct Pooled {
  PoolGeometry g;
  bool nhwc;
  Tensor in, values;
  std::optional<Tensor> marks;
};

inline Pooled pooled(const char* op, const Tensor& input, const PoolArguments& args, bool ceil_mode, Marks kind) {
  const PoolGeometry g = pooled_geometry(op, input, args, ceil_mode);
  STD_TORCH_CHECK(kind != Marks::codes || g.taps() <= 256, op,
                  ": one-byte codes number at most 256 taps of a window; got ", g.taps());
  const bool nhwc = is_batched(input, args) && answers_channels_last(input);
  const Tensor in = dense(input, nhwc);
  const auto size = size_with(input, args, g.small);
  std::optional<Tensor> marks;
  if (kind != Marks::none) marks = empty(size, in, nhwc, kind == Marks::indices ? ScalarType::Long : ScalarType::Byte);
  return {g, nhwc, in, empty(size, in, nhwc), marks};
}

// The operators of pooling, of a device's pool(op, input, args, ceil_mode, kind), which gives values and marks.
using Pool = std::pair<Tensor, std::optional<Tensor>> (*)(const char*, const Tensor&, const PoolArguments&, bool,
                                                          Marks);
template <Text Op, Pool pool, Marks kind>
std::tuple<Tensor, Tensor> pool_marked(const Tensor& input, std::vector<int64_t> kernel_size,
                                       std::vector<int64_t> stride, std::vector<int64_t> padding,
                                       std::vector<int64_t> dilation, bool ceil_mode) {
  auto [values, marks] = pool(Op.text, input, {kernel_size, stride, padding, dilation}, ceil_mode, kind);
  return {values, *marks};
}
template <Pool pool>
Tensor pool_values(const Tensor& input, std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
                   std::vector<int64_t> padding, std::vector<int64_t> dilation, bool ceil_mode) {
  return pool("max_pool_values", input, {kernel_size, stride, padding, dilation}, ceil_mode, Marks::none).first;
}

}  // namespace atrousops
