// Devices and their properties.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "fake_cuda/runtime.h"

namespace fake_cuda {

static thread_local int current = 0;
int current_device() { return current; }

static const DeviceKind& find_kind(const std::string& key) {
  std::string known;
  for (const DeviceKind& k : kDeviceKinds) {
    if (key == k.key) return k;
    known += std::string(" ") + k.key;
  }
  std::fprintf(stderr, "ATROUSOPS_EMULATED_GPU: %s is not one of%s\n", key.c_str(), known.c_str());
  std::abort();
}

static const std::vector<const DeviceKind*>& devices() {
  static const auto* all = [] {
    auto* found = new std::vector<const DeviceKind*>;
    const char* wish = std::getenv("ATROUSOPS_EMULATED_GPU");
    std::string rest = std::string(wish && *wish ? wish : "H100,H100-1g") + ",";
    for (size_t comma; (comma = rest.find(',')) != std::string::npos; rest.erase(0, comma + 1))
      found->push_back(&find_kind(rest.substr(0, comma)));
    return found;
  }();
  return *all;
}

int device_count() { return static_cast<int>(devices().size()); }
const DeviceKind& device_kind(int device) { return *devices()[static_cast<size_t>(device)]; }
int driver_version() {
  const char* wish = std::getenv("ATROUSOPS_EMULATED_DRIVER");
  return wish ? std::atoi(wish) : 13000;
}

static cudaDeviceProp properties(const DeviceKind& k) {
  cudaDeviceProp p;
  std::memset(&p, 0, sizeof(p));
  std::snprintf(p.name, sizeof(p.name), "%s", k.name);
  p.totalGlobalMem = k.memory_bytes;
  p.sharedMemPerBlock = kSharedByDefault;
  p.sharedMemPerBlockOptin = static_cast<size_t>(k.shared_per_block);
  p.sharedMemPerMultiprocessor = static_cast<size_t>(k.shared_per_multiprocessor);
  p.reservedSharedMemPerBlock = k.major >= 8 ? 1024 : 0;
  p.regsPerBlock = p.regsPerMultiprocessor = kRegisters;
  p.warpSize = kWarp;
  p.maxThreadsPerBlock = kBlockThreads;
  p.maxThreadsPerMultiProcessor = k.threads_per_multiprocessor;
  p.maxThreadsDim[0] = p.maxThreadsDim[1] = kBlockThreads;
  p.maxThreadsDim[2] = kBlockZ;
  p.maxGridSize[0] = 0x7fffffff;
  p.maxGridSize[1] = p.maxGridSize[2] = kGridYZ;
  p.major = k.major;
  p.minor = k.minor;
  p.multiProcessorCount = k.multiprocessors;
  p.l2CacheSize = k.l2_bytes;
  p.textureAlignment = 512;
  p.concurrentKernels = p.unifiedAddressing = p.canMapHostMemory = 1;
  p.asyncEngineCount = 2;
  p.memoryPoolsSupported = 1;
  p.clusterLaunch = k.major >= 9;
  return p;
}

static int attribute(const DeviceKind& k, cudaDeviceAttr a, bool* known) {
  switch (a) {
    case cudaDevAttrMultiProcessorCount: return k.multiprocessors;
    case cudaDevAttrComputeCapabilityMajor: return k.major;
    case cudaDevAttrComputeCapabilityMinor: return k.minor;
    case cudaDevAttrMaxSharedMemoryPerBlock: return kSharedByDefault;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return k.shared_per_block;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return k.shared_per_multiprocessor;
    case cudaDevAttrL2CacheSize: return k.l2_bytes;
    case cudaDevAttrMaxGridDimX: return 0x7fffffff;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return kGridYZ;
    case cudaDevAttrWarpSize: return kWarp;
    case cudaDevAttrMaxThreadsPerBlock: return kBlockThreads;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return k.threads_per_multiprocessor;
    case cudaDevAttrMaxRegistersPerBlock: return kRegisters;
    case cudaDevAttrClusterLaunch: return k.major >= 9;
    case cudaDevAttrMemoryPoolsSupported: return 1;
    default: *known = false; return 0;
  }
}

static bool is_device(int device) { return device >= 0 && device < device_count(); }

}  // namespace fake_cuda

using namespace fake_cuda;

FAKE_CUDA_API cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaSetDevice(int device) {
  if (!is_device(device)) return fail(cudaErrorInvalidDevice, "cudaSetDevice");
  current = device;
  make_context_current();
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (!is_device(device)) return fail(cudaErrorInvalidDevice, "cudaGetDeviceProperties");
  *p = properties(device_kind(device));
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr a, int device) {
  if (!is_device(device)) return fail(cudaErrorInvalidDevice, "cudaDeviceGetAttribute");
  bool known = true;
  *value = attribute(device_kind(device), a, &known);
  return known ? cudaSuccess : fail(cudaErrorInvalidValue, "cudaDeviceGetAttribute: an attribute that is not written");
}
FAKE_CUDA_API cudaError_t cudaDeviceGetPCIBusId(char* id, int bytes, int device) {
  if (!is_device(device)) return fail(cudaErrorInvalidDevice, "cudaDeviceGetPCIBusId");
  std::snprintf(id, static_cast<size_t>(bytes), "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaDriverGetVersion(int* version) {
  *version = driver_version();
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
// No device sees another's memory: copies between them go through the host.
FAKE_CUDA_API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaProfilerStart() { return cudaSuccess; }
FAKE_CUDA_API cudaError_t cudaProfilerStop() { return cudaSuccess; }
