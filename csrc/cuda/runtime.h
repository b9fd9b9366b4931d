// Streams, devices and their properties.
#pragma once

#include "core/device_properties.h"
#include "cuda/platform.h"
#include "stable/tensor.h"

#if defined(ATROUSOPS_HOST_CUDA)
#include "host_cuda/runtime.h"
#else
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace atrousops::cuda {

using core::DeviceProperties;

#if defined(ATROUSOPS_HOST_CUDA)

struct Stream {};
inline Stream current_stream(const Tensor&) { return {}; }

// Makes a tensor's device the current one; to be held while its kernels are launched.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Tensor&) {}
  ~DeviceGuard() {}
};

inline const DeviceProperties& properties(int32_t device) { return host_cuda::properties(device); }
// -1 is what torch calls the device of a CPU tensor.
inline int32_t device_of(const Tensor&) { return 0; }

#else

using Stream = cudaStream_t;
inline Stream current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<Stream>(stream);
}

class DeviceGuard {
 public:
  explicit DeviceGuard(const Tensor& t) : guard_(t.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

// Asked of the driver once per device.
const DeviceProperties& properties(int32_t device);
inline int32_t device_of(const Tensor& t) { return t.get_device_index(); }

#endif

inline const DeviceProperties& properties(const Tensor& t) { return properties(device_of(t)); }

}  // namespace atrousops::cuda
