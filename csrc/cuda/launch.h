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
#include "host_cuda/runtime.h"
#endif

namespace atrousops::cuda {

struct Launch {
  dim3 grid, block;
  int64_t shared_bytes = 0;
  // So many blocks that follow each other along x see each other's shared memory (sm_90).
  unsigned cluster = 1;
};

// Of a kernel's parameters, which lie one behind the other, aligned. Every driver and device takes 4 KB; more needs a
// driver of CUDA 12.1, and one of 12.0 runs what a newer 12 has built.
inline constexpr size_t kParameterBytes = 4096;
template <class... Parameters>
constexpr size_t parameter_bytes() {
  size_t bytes = 0;
  ((bytes = (bytes + alignof(Parameters) - 1) / alignof(Parameters) * alignof(Parameters) + sizeof(Parameters)), ...);
  return bytes;
}

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
    if (const char* wrong =
            execute({l.grid, l.block, l.shared_bytes, typeid(host_cuda::KernelName<Kernel>).name(), l.cluster},
                    pointers, sizes, sizeof...(arguments)))
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

// Whether the device has room for a cluster of this launch.
template <auto Kernel>
bool can_place(const Launch& l) {
  return l.cluster <= host_cuda::largest_cluster();
}

#else

// Raises an error and clears it in CUDA; otherwise the next call of any library would report it again.
inline void check_cuda(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  STD_TORCH_CHECK(false, std::string(what), ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

// "k<float, 4>, grid (8, 1, 1), block (256, 1, 1), 0 bytes shared"
std::string describe(std::string_view pretty_function, const Launch& l);
// More than 48 KiB of dynamic shared memory must be asked for, once per kernel and device.
void allow_shared(const void* kernel, std::array<std::atomic<int64_t>, 64>& allowed, const Launch& l,
                  std::string_view pretty_function);

// What clusters of a kernel the device has no room for is asked once.
bool can_place(const void* kernel, const Launch& l, std::string_view pretty_function);

inline cudaLaunchConfig_t configure(const Launch& l, cudaLaunchAttribute& cluster) {
  cudaLaunchConfig_t config{};
  config.gridDim = l.grid;
  config.blockDim = l.block;
  config.dynamicSmemBytes = static_cast<size_t>(l.shared_bytes);
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {l.cluster, 1, 1};
  config.attrs = &cluster;
  config.numAttrs = l.cluster > 1 ? 1 : 0;
  return config;
}

template <auto Kernel>
void allow_shared_of(const Launch& l, std::string_view pretty_function) {
  static std::array<std::atomic<int64_t>, 64> allowed{};
  if (l.shared_bytes > (48 << 10)) allow_shared(reinterpret_cast<const void*>(Kernel), allowed, l, pretty_function);
}

// Whether the device has room for a cluster of this launch: a slice of a GPU, or one with few multiprocessors, may not.
template <auto Kernel>
bool can_place(const Launch& l) {
  if (l.cluster <= 1 || is_empty(l)) return true;
  allow_shared_of<Kernel>(l, __PRETTY_FUNCTION__);
  return can_place(reinterpret_cast<const void*>(Kernel), l, __PRETTY_FUNCTION__);
}

template <auto Kernel, class... Parameters>
void launch_as(void (*)(Parameters...), const Launch& l, Stream stream, std::type_identity_t<Parameters>... arguments) {
  static_assert(parameter_bytes<Parameters...>() <= kParameterBytes);
  if (is_empty(l)) return;
  allow_shared_of<Kernel>(l, __PRETTY_FUNCTION__);
  cudaLaunchAttribute cluster{};
  cudaLaunchConfig_t config = configure(l, cluster);
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, Kernel, arguments...);
  if (error != cudaSuccess) check_cuda(error, describe(__PRETTY_FUNCTION__, l));
}

template <auto Kernel, class... Arguments>
void launch(const Launch& l, Stream stream, Arguments&&... arguments) {
  launch_as<Kernel>(Kernel, l, stream, std::forward<Arguments>(arguments)...);
}

#endif

}  // namespace atrousops::cuda
