// resize_bilinear: F.interpolate(mode="bilinear") for inference; positions and weights are PyTorch's. There is no other
// kernel of ours for it: callers with gradients, on other devices or in a graph take PyTorch's
// (ops/_resize_bilinear.py).
#include "cpu/resize_bilinear.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/huge_pages.h"
#include "cpu/parallel.h"
#include "stable/implement.h"

namespace atrousops::cpu {

// Output elements that make a worker worth waking.
static constexpr int64_t kGrain = 1 << 15;
static constexpr int64_t kCacheLine = 64;

// Of one axis; C: what weights are computed in.
template <class C>
class Table {
 public:
  Table(int64_t in, int64_t out, bool align_corners, std::optional<double> factor)
      : in_(in), near_(out), far_(out), near_weight_(out + kResizeSlack), far_weight_(out + kResizeSlack) {
    const C step = step_of(in, out, align_corners, factor);
    for (int64_t i = 0; i < out; ++i) {
      const C center = static_cast<C>(i) + static_cast<C>(0.5);
      const C at = in == out       ? static_cast<C>(0)
                   : align_corners ? step * static_cast<C>(i)
                                   : std::max(std::fma(step, center, static_cast<C>(-0.5)), static_cast<C>(0));
      // Clipped before it is an integer, which holds no infinity, and after, as a float may not hold in - 1.
      const int64_t index = static_cast<int64_t>(std::min(std::floor(at), static_cast<C>(in)));
      near_[i] = in == out ? i : std::min(index, in - 1);
      far_[i] = std::min(near_[i] + (in == out ? 0 : 1), in - 1);
      far_weight_[i] = in == out ? 0 : std::clamp(at - static_cast<C>(near_[i]), static_cast<C>(0), static_cast<C>(1));
      near_weight_[i] = 1 - far_weight_[i];
      if (i == 0 || near_[i] != near_[i - 1]) runs_.push_back(i);
    }
    runs_.push_back(out);
  }

  ResizeAxis axis() const {
    const int64_t out = static_cast<int64_t>(near_.size()), runs = static_cast<int64_t>(runs_.size()) - 1;
    return {in_, out, near_.data(), far_.data(), near_weight_.data(), far_weight_.data(), runs_.data(), runs};
  }

 private:
  // Pixels of the input from one position to the next.
  static C step_of(int64_t in, int64_t out, bool align_corners, std::optional<double> factor) {
    if (align_corners) return out > 1 ? static_cast<C>(in - 1) / static_cast<C>(out - 1) : static_cast<C>(0);
    return factor && *factor > 0 ? static_cast<C>(1 / *factor) : static_cast<C>(in) / static_cast<C>(out);
  }

  int64_t in_;
  std::vector<int64_t> near_, far_, runs_;
  std::vector<C> near_weight_, far_weight_;
};

// The format that PyTorch answers in: what the strides look like, of a single pixel too, and else NCHW.
static bool looks_channels_last(const Tensor& t) {
  if (t.stride(1) == 0) return false;
  int64_t least = 0;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least || (d == 0 && least == t.stride(1))) return false;
    least = t.stride(d) * (t.size(d) > 1 ? t.size(d) : 1);
  }
  return true;
}

template <class C>
static void run(ResizeArgs a, const std::vector<int64_t>& from, const std::vector<int64_t>& to, bool align_corners,
                std::optional<double> factor_h, std::optional<double> factor_w) {
  const Table<C> rows(from[2], to[2], align_corners, factor_h), columns(from[3], to[3], align_corners, factor_w);
  a.rows = rows.axis();
  a.columns = columns.axis();
  const int64_t planes = to[0] * to[1] / a.channels;
  const auto kernel = ATROUSOPS_SELECT(resize_bilinear);
  const int64_t bytes = 2 * resize_scratch(a) * static_cast<int64_t>(sizeof(C));
  parallel_for(0, planes * to[2], kGrain / (to[3] * a.channels), [&](int64_t begin, int64_t end) {
    const std::unique_ptr<char[]> memory(new char[bytes + kCacheLine]);
    const uintptr_t line = (reinterpret_cast<uintptr_t>(memory.get()) + kCacheLine - 1) / kCacheLine;
    kernel(a, begin, end, reinterpret_cast<void*>(line * kCacheLine));
  });
}

Tensor resize_bilinear(const Tensor& input, std::vector<int64_t> size, bool align_corners,
                       std::optional<double> factor_h, std::optional<double> factor_w) {
  STD_TORCH_CHECK(input.dim() == 4, "resize_bilinear: input must be (N, C, H, W)");
  STD_TORCH_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0, "resize_bilinear: size must be two positive numbers");
  STD_TORCH_CHECK(input.size(2) > 0 && input.size(3) > 0, "resize_bilinear: input must have at least one pixel");
  const bool nhwc = looks_channels_last(input);
  const Tensor in = dense(input, nhwc);
  const std::vector<int64_t> from = sizes_of(in), to = {from[0], from[1], size[0], size[1]};
  const Tensor out = empty(to, in, nhwc);
  if (out.numel() == 0) return out;
  expect_writes(out);
  const ResizeArgs a{in.scalar_type(), {}, {}, nhwc ? from[1] : 1, in.const_data_ptr(), out.mutable_data_ptr()};
  if (a.dtype == ScalarType::Double)
    run<double>(a, from, to, align_corners, factor_h, factor_w);
  else
    run<float>(a, from, to, align_corners, factor_h, factor_w);
  return out;
}

}  // namespace atrousops::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(atrousops, m) {
  m.def("resize_bilinear(Tensor input, int[] size, bool align_corners, float? factor_h, float? factor_w) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(atrousops, CPU, m) {
  atrousops::implement<"resize_bilinear", &atrousops::cpu::resize_bilinear, "input">(m);
}
