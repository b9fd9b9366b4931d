// launch<kernel<T, 4>>({grid, block, shared_bytes}, stream, arguments...): the only way a kernel is started. Arguments
// are converted to the kernel's parameter types. A grid without blocks is no launch. Errors are exceptions that name
// the kernel, its grid and block, and CUDA's own words.
#pragma once

#include <array>
#include <atomic>
#include <string>
#include <string_view>
#include <type_traits>
#include <typeinfo>
#include <utility>

#include "cuda/platform.h"
#include "cuda/runtime.h"

#if defined(ATROUSOPS_HOST_CUDA)
#include "host_cuda/coverage.h"
#include "host_cuda/executor.h"
#endif

namespace atrousops::cuda {

struct Launch {
  dim3 grid, block;
  int64_t shared_bytes = 0;
  // So many blocks that follow each other along x see each other's shared memory (sm_90).
  unsigned cluster = 1;
};

inline bool is_empty(const Launch& l) { return l.grid.x == 0 || l.grid.y == 0 || l.grid.z == 0; }

#if defined(ATROUSOPS_HOST_CUDA)

template <auto Kernel, class... Parameters>
void launch_as(void (*)(Parameters...), const Launch& l, std::type_identity_t<Parameters>... arguments) {
  host_cuda::Counter& counter = host_cuda::KernelCounter<Kernel>::counter;
  if (is_empty(l)) return;
  ++counter.runs;
  if (const host_cuda::Executor execute = host_cuda::executor()) {
    const size_t sizes[] = {sizeof(arguments)..., 0};
    const void* const pointers[] = {static_cast<const void*>(&arguments)..., nullptr};
    if (const char* wrong = execute({l.grid, l.block, l.shared_bytes, typeid(host_cuda::KernelName<Kernel>).name(),
                                     l.cluster}, pointers, sizes, sizeof...(arguments)))
      host_cuda::fail(wrong);
    return;
  }
  host_cuda::run_grid({l.grid, l.block, l.shared_bytes, counter.name.c_str(), l.cluster},
                      [&] { Kernel(arguments...); });
}

template <auto Kernel, class... Arguments>
void launch(const Launch& l, Stream, Arguments&&... arguments) {
  launch_as<Kernel>(Kernel, l, std::forward<Arguments>(arguments)...);
}

#else

inline void check_cuda(cudaError_t error, std::string_view what) {
  STD_TORCH_CHECK(error == cudaSuccess, std::string(what), ": ", cudaGetErrorName(error), ": ",
                  cudaGetErrorString(error));
}

// "k<float, 4>, grid (8, 1, 1), block (256, 1, 1), 0 bytes shared"
std::string describe(std::string_view pretty_function, const Launch& l);
// More than 48 KiB of dynamic shared memory must be asked for, once per kernel and device.
void allow_shared(const void* kernel, std::array<std::atomic<int64_t>, 64>& allowed, const Launch& l,
                  std::string_view pretty_function);

template <auto Kernel, class... Parameters>
void launch_as(void (*)(Parameters...), const Launch& l, Stream stream, std::type_identity_t<Parameters>... arguments) {
  if (is_empty(l)) return;
  if (l.shared_bytes > (48 << 10)) {
    static std::array<std::atomic<int64_t>, 64> allowed{};
    allow_shared(reinterpret_cast<const void*>(Kernel), allowed, l, __PRETTY_FUNCTION__);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = l.grid;
  config.blockDim = l.block;
  config.dynamicSmemBytes = static_cast<size_t>(l.shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {l.cluster, 1, 1};
  config.attrs = &cluster;
  config.numAttrs = l.cluster > 1 ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, Kernel, arguments...);
  if (error != cudaSuccess) {
    cudaGetLastError();  // forget it, or the next call would report it again
    check_cuda(error, describe(__PRETTY_FUNCTION__, l));
  }
}

template <auto Kernel, class... Arguments>
void launch(const Launch& l, Stream stream, Arguments&&... arguments) {
  launch_as<Kernel>(Kernel, l, stream, std::forward<Arguments>(arguments)...);
}

#endif

}  // namespace atrousops::cuda
