// The device that kernels believe to run on.
#pragma once

#include "cuda/device_properties.h"

namespace atrousops::host_cuda {

const cuda::DeviceProperties& properties(int device);
void set_properties(const cuda::DeviceProperties& p);

}  // namespace atrousops::host_cuda
