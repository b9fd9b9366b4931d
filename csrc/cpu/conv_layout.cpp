#include "cpu/conv_layout.h"

#include <algorithm>
#include <atomic>
#include <exception>

namespace atrousops::cpu {

Tensor conv_packed(const Tensor& src, std::array<int64_t, 4> sizes, std::array<int64_t, 4> strides, ScalarType dtype) {
  Tensor dst = torch::stable::empty({sizes.begin(), sizes.end()}, dtype, std::nullopt, src.device());
  ConvPackArgs args{src.const_data_ptr(), dst.mutable_data_ptr(), src.scalar_type(), dtype, {}, {}};
  std::copy(sizes.begin(), sizes.end(), args.sizes);
  std::copy(strides.begin(), strides.end(), args.strides);
  if (dst.numel() == 0) return dst;
  const auto tiles = [](int64_t n) { return (n + kConvPackTile - 1) / kConvPackTile; };
  const int64_t items = sizes[0] * tiles(sizes[1]) * tiles(sizes[2]);
  const auto kernel = ATROUSOPS_SELECT(conv_pack);
  const int64_t grain = 1 + 32768 * items / dst.numel();
  parallel_for(0, items, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return dst;
}

Tensor conv_channels_last(const Tensor& t) {
  if (is_channels_last(t)) return t;
  const int64_t n = t.size(0), c = t.size(1), positions = n * c == 0 ? 0 : t.numel() / (n * c);
  const Tensor in = dense(t, false);
  return conv_packed(in, {n, 1, positions, c}, {c * positions, 0, 1, positions}, t.scalar_type());
}

Tensor conv_weight_from(const Tensor& part, int64_t slices, std::array<int64_t, 3> sizes,
                        std::array<int64_t, 3> strides, const std::vector<int64_t>& tap,
                        const std::vector<int64_t>& out_size, ScalarType dtype) {
  Tensor out = torch::stable::empty(out_size, dtype, std::nullopt, part.device());
  const auto [k, taps, c] = sizes;
  const ConvWeightSumArgs args{part.const_data_ptr(),
                               out.mutable_data_ptr(),
                               part.scalar_type(),
                               dtype,
                               slices,
                               k,
                               taps,
                               c,
                               tap.data(),
                               strides[0],
                               strides[2],
                               strides[1]};
  const auto kernel = ATROUSOPS_SELECT(conv_weight_sum);
  parallel_for(0, k, 1 + 32768 / (taps * c + 1), [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return out;
}

int64_t conv_workers(int64_t items) {
  return std::max<int64_t>(2, std::min<int64_t>(items, torch::stable::get_num_threads()));
}

void conv_each(int64_t items, const std::function<void(int64_t, int64_t)>& f) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  torch::stable::parallel_for(0, conv_workers(items), 1, [&](int64_t begin, int64_t) {
    try {
      for (int64_t item = next++; item < items && !failed; item = next++) f(item, begin);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace atrousops::cpu
