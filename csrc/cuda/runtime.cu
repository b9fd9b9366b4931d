#include "cuda/launch.h"
#include "cuda/runtime.h"

#if !defined(ATROUSOPS_HOST_CUDA)

#include <mutex>

namespace atrousops::cuda {

static DeviceProperties ask(int device) {
  const auto attribute = [&](cudaDeviceAttr a) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, a, device), "cudaDeviceGetAttribute");
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount),
          10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          attribute(cudaDevAttrL2CacheSize)};
}

const DeviceProperties& properties(int32_t device) {
  constexpr int kDevices = 64;
  static DeviceProperties known[kDevices];
  static std::once_flag asked[kDevices];
  STD_TORCH_CHECK(device >= 0 && device < kDevices, "device ", device, ": numbers go up to ", kDevices - 1);
  std::call_once(asked[device], [&] { known[device] = ask(device); });
  return known[device];
}

}  // namespace atrousops::cuda

#endif
