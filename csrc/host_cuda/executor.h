// Another way to run what is launched: nvcc's PTX, translated, in place of the kernel's source (tests/ptx).
#pragma once

#include <cstddef>

#include "host_cuda/engine.h"

namespace atrousops::host_cuda {

// Its typeid's name holds the kernel's.
template <auto Kernel>
struct KernelName {};

// Returns what went wrong, or null. `grid.kernel` is a KernelName's; arguments and their sizes as the kernel has them.
using Executor = const char* (*)(const Grid& grid, const void* const* arguments, const size_t* sizes, size_t count);
// Null: kernels are run from their source.
Executor executor();

}  // namespace atrousops::host_cuda
