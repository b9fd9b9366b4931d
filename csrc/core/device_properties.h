#pragma once

#include <cstdint>

namespace atrousops::core {

// Properties of a GPU that kernels are chosen by. Bytes of shared memory: what a launch may ask for.
struct DeviceProperties {
  int multiprocessors;
  int capability;  // 90 for 9.0
  int64_t shared_per_block, shared_per_multiprocessor;
  int64_t l2_bytes;
};

}  // namespace atrousops::core
