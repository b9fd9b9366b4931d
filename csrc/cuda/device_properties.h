#pragma once

#include <cstdint>

namespace atrousops::cuda {

// What kernels are chosen by. Bytes of shared memory are what a launch may ask for.
struct DeviceProperties {
  int multiprocessors;
  int capability;  // 90 for 9.0
  int64_t shared_per_block, shared_per_multiprocessor;
  int64_t l2_bytes;
};

}  // namespace atrousops::cuda
