// flush_subnormals: y = 0 where |x| is below the dtype's smallest normal number, else x.
#include "cpu/flush_subnormals.h"

#include <torch/csrc/stable/library.h>

#include <atomic>

#include "cpu/parallel.h"
#include "stable/tensor.h"

namespace atrousops::cpu {

Tensor flush_subnormals(const Tensor& input) {
  const bool nhwc = prefers_channels_last(input);
  const Tensor in = dense(input, nhwc);
  Tensor out = in.dim() >= 3 ? empty(sizes_of(in), in, nhwc) : torch::stable::empty_like(in);
  const FlushSubnormalsArgs args{in.const_data_ptr(), out.mutable_data_ptr(), in.scalar_type()};
  const auto kernel = ATROUSOPS_SELECT(flush_subnormals);
  parallel_for(0, in.numel(), 1 << 16, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return out;
}

// Looks at one block of elements in `step`; a tensor that is not dense is copied first.
bool has_subnormals(const Tensor& input, int64_t step) {
  STD_TORCH_CHECK(step > 0, "has_subnormals: step must be positive; got ", step);
  const Tensor in = dense(input, prefers_channels_last(input));
  const FlushSubnormalsArgs args{in.const_data_ptr(), nullptr, in.scalar_type()};
  const auto kernel = ATROUSOPS_SELECT(has_subnormals);
  std::atomic<bool> any{false};
  parallel_for(0, in.numel(), step << 16, [&](int64_t begin, int64_t end) {
    bool found = false;
    kernel(args, begin, end, step, &found);
    if (found) any = true;
  });
  return any;
}

}  // namespace atrousops::cpu

STABLE_TORCH_LIBRARY_IMPL(atrousops, CPU, m) {
  m.impl("flush_subnormals", TORCH_BOX(&atrousops::cpu::flush_subnormals));
  m.impl("has_subnormals", TORCH_BOX(&atrousops::cpu::has_subnormals));
}
