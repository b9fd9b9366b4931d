// The device that kernels believe to run on.
#pragma once

#include "core/device_properties.h"

namespace atrousops::host_cuda {

const core::DeviceProperties& properties(int device);
void set_properties(const core::DeviceProperties& p);
// Blocks of a cluster that there is room for.
unsigned& largest_cluster();

}  // namespace atrousops::host_cuda
