// The first include of every .cu: CUDA under nvcc; on the host, for tests, an emulation (csrc/host_cuda).
#pragma once

#include <cstdint>

#if defined(ATROUSOPS_HOST_CUDA)
#include "host_cuda/instructions.h"
#include "host_cuda/intrinsics.h"
#include "host_cuda/sync.h"
#include "host_cuda/types.h"
#else
#include <cuda_runtime.h>
#endif

#include "stable/dispatch.h"

namespace atrousops::cuda {

// Numbers of 16 bits accumulate in fp32.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

// For loops over all of a one-dimensional grid: for (i = first_index(); i < n; i += index_step()).
__device__ inline int64_t first_index() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t index_step() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Blocks of `threads` for n indices, within what a grid may have.
inline unsigned blocks_for(int64_t n, int64_t threads) {
  const int64_t blocks = (n + threads - 1) / threads;
  return static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff);
}

}  // namespace atrousops::cuda
