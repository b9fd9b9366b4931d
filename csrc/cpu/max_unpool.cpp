// max_unpool: writes each value to the position of its mark, zero elsewhere. Marks are flat positions (int64) or
// one-byte numbers of taps. Also the gradients, which are the same two operations: windows to positions, positions to
// windows.
#include "cpu/max_unpool.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <memory>

#include "cpu/huge_pages.h"
#include "cpu/parallel.h"
#include "stable/implement.h"
#include "stable/pool_tensor.h"

namespace atrousops::cpu {

// f(begin, end, scratch, &count) over all of [0, units); the sum of the counts.
template <class F>
static int64_t counted(int64_t units, int64_t work, int64_t scratch_bytes, const F& f) {
  std::atomic<int64_t> total{0};
  parallel_for(0, units, kPoolGrain / (work + 1), [&](int64_t begin, int64_t end) {
    const std::unique_ptr<char[]> scratch(new char[scratch_bytes]);
    int64_t count = 0;
    f(begin, end, scratch.get(), &count);
    total.fetch_add(count, std::memory_order_relaxed);
  });
  return total.load();
}

// Returns whether all marks are known to be inside the large map. Others are ignored.
static bool fill_large(const MaxUnpoolArgs& a) {
  const PoolGeometry& g = a.g;
  const int64_t all = g.batch * g.channels * g.small_plane();
  const bool indices = a.kind == Marks::indices;
  if (can_place(a)) {
    const int64_t units = g.batch * g.large[0] * g.large[1] * (a.channels_last ? g.large[2] : g.channels);
    const auto kernel = ATROUSOPS_SELECT(place_windows);
    const int64_t found = counted(units, a.channels_last ? g.channels : g.large[2], 0,
                                  [&](int64_t b, int64_t e, void*, int64_t* n) { kernel(a, b, e, n); });
    if (!indices || found == all) return found == all;
  }
  const int64_t width = a.channels_last ? kScatterChannels : 1;
  const bool wide = a.meeting == Meeting::sum && (a.dtype == ScalarType::Half || a.dtype == ScalarType::BFloat16);
  const int64_t units = g.batch * ((g.channels + width - 1) / width);
  const auto kernel = ATROUSOPS_SELECT(scatter);
  const int64_t inside = counted(units, width * g.large_plane(), wide ? 4 * width * g.large_plane() : 0,
                                 [&](int64_t b, int64_t e, void* s, int64_t* n) { kernel(a, b, e, s, n); });
  // A wrong code may point into the map, too.
  return indices && inside == all;
}

// Small map to large map.
static std::pair<Tensor, bool> place(const char* op, const Tensor& small, const Tensor& marks,
                                     const std::vector<int64_t>& large_size, const PoolArguments& args,
                                     Meeting meeting) {
  const PoolGeometry g = placed_geometry(op, small, marks, large_size, args);
  const bool nhwc = is_batched(small, args) && answers_channels_last(small);
  const Tensor in = dense(small, nhwc), m = dense(marks, nhwc);
  Tensor out = empty(size_with(small, args, g.large), in, nhwc);
  expect_writes(out);
  const bool complete = fill_large({g, in.const_data_ptr(), m.const_data_ptr(), out.mutable_data_ptr(),
                                    kind_of(op, marks), meeting, in.scalar_type(), nhwc});
  return {out, complete};
}

// Large map to small map.
static Tensor pick_elements(const char* op, const Tensor& large, const Tensor& marks, const PoolArguments& args) {
  PoolGeometry g = window_geometry(op, large, args);
  STD_TORCH_CHECK(marks.dim() == large.dim(), op, ": indices must have as many dimensions as the gradient");
  spatial(large, args, g.large);
  spatial(marks, args, g.small);
  check_marks(op, marks, marks);
  for (int64_t i = 0; i < marks.dim() - args.axes(); ++i)
    STD_TORCH_CHECK(marks.size(i) == large.size(i), op, ": indices must have the batch and channels of the gradient");
  const bool nhwc = is_batched(large, args) && answers_channels_last(marks);
  const Tensor in = dense(large, nhwc), m = dense(marks, nhwc);
  Tensor out = empty(sizes_of(marks), in, nhwc);
  expect_writes(out);
  const MaxUnpoolArgs a{g,
                        in.const_data_ptr(),
                        m.const_data_ptr(),
                        out.mutable_data_ptr(),
                        kind_of(op, marks),
                        Meeting::last,
                        in.scalar_type(),
                        nhwc};
  const int64_t units = g.batch * g.small[0] * g.small[1] * (nhwc ? g.small[2] : g.channels);
  const auto kernel = ATROUSOPS_SELECT(pick);
  parallel_for(0, units, kPoolGrain / (1 + (nhwc ? g.channels : g.small[2])),
               [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return out;
}

// Raises for the first index outside; only called if there is one.
static void refuse(const Tensor& marks, const std::vector<int64_t>& output_size) {
  const Tensor m = dense(marks, false);
  const int64_t* p = data<int64_t>(m);
  int64_t plane = 1;
  for (const int64_t n : output_size) plane *= n;
  for (int64_t i = 0; i < m.numel(); ++i)
    if (p[i] < 0 || p[i] >= plane)
      bad_value("max_unpool: indices must lie between 0 and ", plane - 1, " (positions in an output plane of ", plane,
                " elements); got ", p[i], " at element ", i, ". Found an invalid max index: ", p[i],
                ". Pass the indices of the pooling that is undone, and its input's size as output_size.");
}
static void check_codes(const Tensor& marks, const std::vector<int64_t>& kernel_size) {
  const Tensor m = dense(marks, prefers_channels_last(marks));
  int64_t taps = 1;
  for (const int64_t k : kernel_size) taps *= k;
  if (taps >= 256) return;
  const uint8_t* p = data<uint8_t>(m);
  std::atomic<int> worst{0};
  parallel_for(0, m.numel(), kPoolGrain, [&](int64_t begin, int64_t end) {
    uint8_t most = 0;
    for (int64_t i = begin; i < end; ++i) most = p[i] > most ? p[i] : most;
    int before = worst.load();
    while (most > before && !worst.compare_exchange_weak(before, most)) {
    }
  });
  if (worst >= taps)
    bad_value("max_unpool: one-byte codes in indices must lie between 0 and ", taps - 1, " for a window of ", taps,
              "; got ", worst.load(), ". Pass the kernel_size of the pooling that is undone.");
}

Tensor max_unpool(const Tensor& input, const Tensor& indices, std::vector<int64_t> output_size,
                  std::vector<int64_t> kernel_size, std::vector<int64_t> stride, std::vector<int64_t> padding) {
  const std::vector<int64_t> dilation(kernel_size.size(), 1);
  auto [out, complete] =
      place("max_unpool", input, indices, output_size, {kernel_size, stride, padding, dilation}, Meeting::last);
  // As in PyTorch, indices into an empty output are not an error.
  if (!complete && kind_of("max_unpool", indices) == Marks::codes)
    check_codes(indices, kernel_size);
  else if (!complete && out.numel() > 0)
    refuse(indices, output_size);
  return out;
}

Tensor max_unpool_backward(const Tensor& grad, const Tensor& indices, std::vector<int64_t> kernel_size,
                           std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  return pick_elements("max_unpool_backward", grad, indices, {kernel_size, stride, padding, dilation});
}

// An index outside the input belongs to a window without elements; its gradient is dropped.
Tensor max_pool_backward(const Tensor& grad, const Tensor& indices, std::vector<int64_t> input_size,
                         std::vector<int64_t> kernel_size, std::vector<int64_t> stride, std::vector<int64_t> padding,
                         std::vector<int64_t> dilation) {
  return place("max_pool_backward", grad, indices, input_size, {kernel_size, stride, padding, dilation}, Meeting::sum)
      .first;
}

}  // namespace atrousops::cpu

STABLE_TORCH_LIBRARY_IMPL(atrousops, CPU, m) {
  atrousops::implement<"max_unpool", &atrousops::cpu::max_unpool, "input", "indices">(m);
  atrousops::implement<"max_unpool_backward", &atrousops::cpu::max_unpool_backward, "grad", "indices">(m);
}
