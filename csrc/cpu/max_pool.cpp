// max_pool: y = max over the window, with the flat position of the maximum, or its one-byte number in the window.
#include "cpu/max_pool.h"

#include <torch/csrc/stable/library.h>

#include <memory>
#include <tuple>

#include "cpu/huge_pages.h"
#include "cpu/parallel.h"
#include "stable/implement.h"
#include "stable/pool_tensor.h"

namespace atrousops::cpu {

// The gradient of max_pool scatters like max_unpool, and is in the same file.
Tensor max_pool_backward(const Tensor& grad, const Tensor& indices, std::vector<int64_t> input_size,
                         std::vector<int64_t> kernel_size, std::vector<int64_t> stride, std::vector<int64_t> padding,
                         std::vector<int64_t> dilation);

// (values, marks); marks are not made for Marks::none.
static std::pair<Tensor, std::optional<Tensor>> pool(const char* op, const Tensor& input, const PoolArguments& args,
                                                     bool ceil_mode, Marks kind) {
  auto [g, nhwc, in, values, marks] = pooled(op, input, args, ceil_mode, kind);
  expect_writes(values);
  if (marks) expect_writes(*marks);
  const MaxPoolArgs a{g,
                      in.const_data_ptr(),
                      values.mutable_data_ptr(),
                      marks ? marks->mutable_data_ptr() : nullptr,
                      kind,
                      in.scalar_type(),
                      nhwc};
  const auto kernel = ATROUSOPS_SELECT(max_pool);
  const int64_t rows = g.batch * g.small_plane() * (nhwc ? 1 : g.channels) / (nhwc ? 1 : g.small[2]);
  const int64_t work = g.taps() * (nhwc ? g.channels : g.small[2]) + 1;
  parallel_for(0, rows, kPoolGrain / work, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<char[]> scratch(new char[max_pool_scratch(g)]);
    kernel(a, begin, end, scratch.get());
  });
  return {values, marks};
}

constexpr auto max_pool = &pool_marked<"max_pool", pool, Marks::indices>;
constexpr auto max_pool_codes = &pool_marked<"max_pool_codes", pool, Marks::codes>;
constexpr auto max_pool_values = &pool_values<pool>;

}  // namespace atrousops::cpu

STABLE_TORCH_LIBRARY_IMPL(atrousops, CPU, m) {
  atrousops::implement<"max_pool", atrousops::cpu::max_pool, "input">(m);
  atrousops::implement<"max_pool_backward", &atrousops::cpu::max_pool_backward, "grad", "indices">(m);
  atrousops::implement<"max_pool_codes", atrousops::cpu::max_pool_codes, "input">(m);
  atrousops::implement<"max_pool_values", atrousops::cpu::max_pool_values, "input">(m);
}
