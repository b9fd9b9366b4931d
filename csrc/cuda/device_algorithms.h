// Sorting and scanning: CUB on the device, with its workspace from torch's allocator; the standard library on the host.
// All are stable, deterministic, and run on the given stream without waiting for it.
#pragma once

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/platform.h"
#include "cuda/runtime.h"
#include "stable/tensor.h"

#ifdef ATROUSOPS_HOST_CUDA
#include <algorithm>
#include <numeric>
#include <vector>
#else
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#endif

namespace atrousops::cuda {

#ifndef ATROUSOPS_HOST_CUDA

// run(workspace, bytes) asks for the size if workspace is null. `like` is on the device.
template <class F>
void with_workspace(const char* what, const Tensor& like, const F& run) {
  size_t bytes = 0;
  cudaError_t status = run(nullptr, bytes);
  if (status == cudaSuccess) {
    // A null workspace would be another question for the size.
    const Tensor workspace =
        torch::stable::empty({static_cast<int64_t>(bytes) + 1}, ScalarType::Byte, std::nullopt, like.device());
    status = run(workspace.mutable_data_ptr(), bytes);
  }
  check_cuda(status, what);
}

// Sorts by bits [0, bits) of the keys; equal keys keep their order. Outputs do not overlap inputs.
template <class Key>
void sort_pairs(const Tensor& like, Stream stream, const Key* keys, Key* sorted_keys, const int32_t* values,
                int32_t* sorted_values, int64_t count, int bits) {
  with_workspace("sort_pairs", like, [&](void* workspace, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(workspace, bytes, keys, sorted_keys, values, sorted_values, count, 0, bits,
                                           stream);
  });
}

// out[i] = in[0] + .. + in[i]; in place if they are the same.
inline void inclusive_sum(const Tensor& like, Stream stream, const int32_t* in, int32_t* out, int64_t count) {
  with_workspace("inclusive_sum", like, [&](void* workspace, size_t& bytes) {
    return cub::DeviceScan::InclusiveSum(workspace, bytes, in, out, count, stream);
  });
}

#else

template <class Key>
void sort_pairs(const Tensor&, Stream, const Key* keys, Key* sorted_keys, const int32_t* values, int32_t* sorted_values,
                int64_t count, int bits) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), int64_t{0});
  const Key mask = bits >= static_cast<int>(8 * sizeof(Key)) ? ~Key{0} : (Key{1} << bits) - 1;
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return (keys[a] & mask) < (keys[b] & mask); });
  for (int64_t i = 0; i < count; ++i) {
    sorted_keys[i] = keys[order[i]];
    sorted_values[i] = values[order[i]];
  }
}

inline void inclusive_sum(const Tensor&, Stream, const int32_t* in, int32_t* out, int64_t count) {
  std::partial_sum(in, in + count, out);
}

#endif

}  // namespace atrousops::cuda
