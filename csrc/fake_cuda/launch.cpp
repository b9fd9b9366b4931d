// Registration of kernels, and their launches: what a device refuses, and the executor for the rest.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>

#include "fake_cuda/kernels.h"
#include "fake_cuda/runtime.h"
#include "fake_cuda/tensor_map.h"

namespace fake_cuda {

// Machine code or PTX for one compute capability, as 90. Registers are a thread's; 0 where they are unknown.
struct Code {
  int capability, registers;
  bool is_ptx, for_it_alone;
};
struct Declared {
  std::vector<unsigned> parameter_bytes;
  unsigned static_shared = 0, most_threads = 0;
  std::vector<Code> codes;
  uint64_t launches = 0;
};
// A host function that stands for a kernel.
struct Kernel {
  std::string name;
  std::map<int, int> dynamic_shared = {};  // allowed, by device
  std::set<int> large_clusters = {};       // devices where they are allowed
};
struct Launch {
  dim3 grid, block;
  size_t shared;
  unsigned cluster;
};

static std::map<std::string, Declared>& declared() {
  static auto* all = new std::map<std::string, Declared>;
  return *all;
}
static std::map<const void*, Kernel>& kernels() {
  static auto* all = new std::map<const void*, Kernel>;
  return *all;
}
// A parameter's bytes, aligned as any may be.
struct alignas(128) Line {
  char bytes[128];
};
using Parameters = std::vector<std::vector<Line>>;

static FakeCudaExecute execute = nullptr;
static FakeCudaWhy why = nullptr;
static int running_on = -1;

static std::vector<Code> read_codes(std::string text) {
  std::vector<Code> codes;
  text += ";";
  for (size_t end; (end = text.find(';')) != std::string::npos; text.erase(0, end + 1)) {
    const bool is_ptx = text.starts_with("compute_");
    const std::string one = text.substr(is_ptx ? 8 : 0, end - (is_ptx ? 8 : 0));
    const size_t colon = std::min(one.find(':'), one.size());
    const int registers = colon < one.size() ? std::atoi(one.c_str() + colon + 1) : 0;
    codes.push_back({std::atoi(one.c_str()), registers, is_ptx, one[colon - 1] == 'a'});
  }
  return codes;
}

// What a device would run, or null. Machine code runs on its own major version from its minor version on; that of "90a"
// on 9.0 alone. PTX of "compute_80" is compiled for 8.0 and later, where there is no machine code.
static const Code* code_for(const std::vector<Code>& codes, const DeviceKind& k) {
  const Code* best = nullptr;
  const int device = 10 * k.major + k.minor;
  for (const Code& c : codes) {
    const bool runs =
        c.is_ptx ? c.capability <= device
                 : c.capability / 10 == k.major && (c.for_it_alone ? c.capability == device : c.capability <= device);
    const auto rank = [](const Code& code) { return (code.is_ptx ? 0 : 1000) + code.capability; };
    if (runs && (!best || rank(c) > rank(*best))) best = &c;
  }
  return best;
}

// Blocks that a multiprocessor's registers are enough for, as cuda_occupancy.h of the toolkit counts them: a warp gets
// registers 256 at a time, from a quarter of the multiprocessor. Zero: the device refuses such a block.
static int blocks_by_registers(int registers, int threads) {
  if (!registers) return kMostBlocks;
  const int warps = (threads + kWarp - 1) / kWarp;
  const int of_warp = (registers * kWarp + kRegisterUnit - 1) / kRegisterUnit * kRegisterUnit;
  if (of_warp * ((warps + kQuarters - 1) / kQuarters * kQuarters) > kRegisters) return 0;
  return kRegisters / kQuarters / of_warp * kQuarters / warps;
}

static cudaError_t check_shape(const Kernel& kernel, const Launch& l, int device) {
  const DeviceKind& k = device_kind(device);
  const auto& [g, b, shared, cluster] = l;
  if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z)
    return fail(cudaErrorInvalidConfiguration, "an empty grid or block");
  if (g.x > 0x7fffffffu || g.y > kGridYZ || g.z > kGridYZ) return fail(cudaErrorInvalidConfiguration, "grid too large");
  if (uint64_t{b.x} * b.y * b.z > kBlockThreads || b.z > kBlockZ)
    return fail(cudaErrorInvalidConfiguration, "block too large");
  if (cluster == 1) return cudaSuccess;
  if (k.major < 9) return fail(cudaErrorNotSupported, "clusters need compute capability 9.0");
  const unsigned largest = kernel.large_clusters.count(device) ? kLargestCluster : kPortableCluster;
  if (g.x % cluster != 0 || cluster > largest) return fail(cudaErrorInvalidClusterSize, "cluster");
  return cudaSuccess;
}

static cudaError_t check_resources(const Kernel& kernel, const Declared& d, const Launch& l, int device) {
  const DeviceKind& k = device_kind(device);
  const Code* code = code_for(d.codes, k);
  if (!code) return fail(cudaErrorNoKernelImageForDevice, kernel.name.c_str());
  const unsigned threads = l.block.x * l.block.y * l.block.z;
  if (d.most_threads && threads > d.most_threads)
    return fail(cudaErrorLaunchOutOfResources, "more threads than the kernel was compiled for");
  if (!blocks_by_registers(code->registers, static_cast<int>(threads)))
    return fail(cudaErrorLaunchOutOfResources, "more registers than a block can have");
  const auto allowed = kernel.dynamic_shared.find(device);
  const int limit =
      allowed == kernel.dynamic_shared.end() ? kSharedByDefault - static_cast<int>(d.static_shared) : allowed->second;
  if (l.shared > static_cast<size_t>(limit > 0 ? limit : 0))
    return fail(cudaErrorInvalidValue, "more dynamic shared memory than the attribute allows");
  if (l.shared + d.static_shared > static_cast<size_t>(k.shared_per_block))
    return fail(cudaErrorInvalidValue, "more shared memory than a block can have");
  size_t bytes = 0;
  for (unsigned b : d.parameter_bytes) bytes += b;
  const bool allows_large = driver_version() >= kLargeParametersDriver && k.major >= 7;
  if (bytes > (allows_large ? kLargeParameterBytes : kParameterBytes))
    return fail(cudaErrorInvalidValue, "more bytes of parameters than driver or device allow");
  return cudaSuccess;
}

static cudaError_t run(const std::string& name, const Launch& l, int device, Parameters& values) {
  std::vector<void*> arguments;
  for (auto& v : values) arguments.push_back(v.data());
  running_on = device;
  const auto& [g, b, shared, cluster] = l;
  const int wrong = execute(name.c_str(), {g.x, g.y, g.z}, {b.x, b.y, b.z}, shared, cluster, arguments.data());
  running_on = -1;
  if (!wrong) return cudaSuccess;
  return fail_for_good(cudaErrorLaunchFailure, (name + ": " + (why ? why() : "it could not be executed")).c_str());
}

static cudaError_t launch(const void* function, const Launch& l, void** arguments, cudaStream_t handle) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  const auto known = kernels().find(function);
  if (known == kernels().end()) return fail(cudaErrorInvalidDeviceFunction, "a function that is no kernel");
  const std::string& name = known->second.name;
  const int device = current_device();
  if (find(handle)->device != device) return fail(cudaErrorInvalidResourceHandle, "a stream of another device");
  if (const cudaError_t e = check_shape(known->second, l, device)) return e;
  // torch.cuda._sleep: a queue that runs late needs no more.
  if (name.find("spin_kernel") != std::string::npos) return enqueue(handle, [] { return cudaSuccess; });
  const auto described = declared().find(name);
  if (described == declared().end() || !execute) {
    std::fprintf(stderr, "emulated CUDA: there is no translation of %s\n", name.c_str());
    return fail(cudaErrorInvalidDeviceFunction, "a kernel that cannot be executed");
  }
  Declared& d = described->second;
  if (const cudaError_t e = check_resources(known->second, d, l, device)) return e;
  ++d.launches;
  auto values = std::make_shared<Parameters>();
  for (size_t i = 0; i < d.parameter_bytes.size(); ++i) {
    values->emplace_back((d.parameter_bytes[i] + sizeof(Line) - 1) / sizeof(Line));
    std::memcpy(values->back().data(), arguments[i], d.parameter_bytes[i]);
  }
  return enqueue(handle, [=] { return run(name, l, device, *values); });
}

}  // namespace fake_cuda

using namespace fake_cuda;

void fake_cuda_set_executor(FakeCudaExecute e, FakeCudaWhy w) {
  Lock lock(mutex());
  execute = e;
  why = w;
}
void fake_cuda_declare(const char* name, const unsigned* parameter_bytes, int parameters, unsigned static_shared,
                       unsigned most_threads, const char* codes) {
  Lock lock(mutex());
  declared()[name] = {{parameter_bytes, parameter_bytes + parameters}, static_shared, most_threads, read_codes(codes)};
}
const char* fake_cuda_launches() {
  Lock lock(mutex());
  static std::string lines;
  lines.clear();
  for (const auto& [name, d] : declared()) lines += name + "\t" + std::to_string(d.launches) + "\n";
  return lines.c_str();
}
uint64_t fake_cuda_variable(const char* name) {
  return running_on < 0 ? 0 : reinterpret_cast<uint64_t>(variable_on(running_on, name));
}
int fake_cuda_find_block(const void* p, size_t bytes, FakeCudaBlock* found) {
  return running_on >= 0 && device_of(p) == running_on && find_block(p, bytes, running_on, found);
}

FAKE_CUDA_API void** __cudaRegisterFatBinary(void* binary) { return new void*(binary); }
FAKE_CUDA_API void __cudaRegisterFatBinaryEnd(void**) {}
FAKE_CUDA_API void __cudaUnregisterFatBinary(void**) {}
FAKE_CUDA_API char __cudaInitModule(void**) { return 1; }
FAKE_CUDA_API void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*,
                                          dim3*, int*) {
  Lock lock(mutex());
  kernels()[host].name = name;
}

struct CallConfiguration {
  dim3 grid, block;
  size_t shared;
  void* stream;
};
static thread_local std::vector<CallConfiguration> configurations;
FAKE_CUDA_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
FAKE_CUDA_API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const CallConfiguration c = configurations.back();
  configurations.pop_back();
  *grid = c.grid;
  *block = c.block;
  *shared = c.shared;
  *static_cast<void**>(stream) = c.stream;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                                             size_t shared, cudaStream_t stream) {
  return launch(kernel, {grid, block, shared, 1}, arguments, stream);
}
FAKE_CUDA_API cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                                           cudaStream_t stream) {
  return launch(function, {grid, block, shared, 1}, arguments, stream);
}
static cudaError_t read(const cudaLaunchConfig_t& c, Launch* l) {
  *l = {c.gridDim, c.blockDim, c.dynamicSmemBytes, 1};
  for (unsigned i = 0; i < c.numAttrs; ++i) {
    const cudaLaunchAttribute& a = c.attrs[i];
    // Allows an early start, which the queue never makes.
    if (a.id == cudaLaunchAttributeProgrammaticStreamSerialization) continue;
    if (a.id != cudaLaunchAttributeClusterDimension) return fail(cudaErrorNotSupported, "a launch attribute");
    l->cluster = a.val.clusterDim.x;
    if (a.val.clusterDim.y != 1 || a.val.clusterDim.z != 1) return fail(cudaErrorInvalidClusterSize, "along y or z");
  }
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* function, void** arguments) {
  Launch l;
  if (const cudaError_t e = read(*c, &l)) return e;
  return launch(function, l, arguments, c->stream);
}

FAKE_CUDA_API cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute a, int value) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  const auto known = kernels().find(function);
  if (known == kernels().end()) return fail(cudaErrorInvalidDeviceFunction, "cudaFuncSetAttribute");
  if (a == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    if (value != 1) return fail(cudaErrorNotSupported, "large clusters are allowed, and not taken back");
    known->second.large_clusters.insert(current_device());
    return cudaSuccess;
  }
  if (a != cudaFuncAttributeMaxDynamicSharedMemorySize) return fail(cudaErrorNotSupported, "cudaFuncSetAttribute");
  const Declared& d = declared()[known->second.name];
  const int most = device_kind(current_device()).shared_per_block - static_cast<int>(d.static_shared);
  if (value < 0 || value > most) return fail(cudaErrorInvalidValue, "more shared memory than a block can have");
  known->second.dynamic_shared[current_device()] = value;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* function) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  std::memset(a, 0, sizeof(*a));
  const auto known = kernels().find(function);
  if (known == kernels().end()) return fail(cudaErrorInvalidDeviceFunction, "cudaFuncGetAttributes");
  const DeviceKind& k = device_kind(current_device());
  a->maxThreadsPerBlock = kBlockThreads;
  a->binaryVersion = a->ptxVersion = 10 * k.major + k.minor;
  const auto described = declared().find(known->second.name);
  if (described == declared().end()) return cudaSuccess;
  const Declared& d = described->second;
  const Code* code = code_for(d.codes, k);
  if (!code) return fail(cudaErrorNoKernelImageForDevice, "cudaFuncGetAttributes");
  a->sharedSizeBytes = d.static_shared;
  a->numRegs = code->registers;
  if (d.most_threads) a->maxThreadsPerBlock = static_cast<int>(d.most_threads);
  while (!blocks_by_registers(code->registers, a->maxThreadsPerBlock)) a->maxThreadsPerBlock -= kWarp;
  // All machine code is made from the first architecture's PTX.
  a->ptxVersion = d.codes.front().capability;
  return cudaSuccess;
}

FAKE_CUDA_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function,
                                                                                 int threads, size_t shared, unsigned) {
  Lock lock(mutex());
  cudaFuncAttributes a;
  if (const cudaError_t e = cudaFuncGetAttributes(&a, function)) return e;
  if (threads < 1) return fail(cudaErrorInvalidValue, "the occupancy of empty blocks");
  const DeviceKind& k = device_kind(current_device());
  const int each = static_cast<int>(shared + a.sharedSizeBytes) + 1024;
  *blocks = std::min({k.blocks_per_multiprocessor, k.threads_per_multiprocessor / threads,
                      k.shared_per_multiprocessor / each, blocks_by_registers(a.numRegs, threads)});
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                                        size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}

// As if a cluster could be placed on any multiprocessors.
FAKE_CUDA_API cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* function,
                                                         const cudaLaunchConfig_t* c) {
  Lock lock(mutex());
  Launch l;
  if (const cudaError_t e = read(*c, &l)) return e;
  const DeviceKind& k = device_kind(current_device());
  const auto known = kernels().find(function);
  if (known == kernels().end()) return fail(cudaErrorInvalidDeviceFunction, "cudaOccupancyMaxActiveClusters");
  if (const cudaError_t e = check_shape(known->second, l, current_device())) return e;
  int blocks = 0;
  const int threads = static_cast<int>(l.block.x * l.block.y * l.block.z);
  if (const cudaError_t e = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, threads, l.shared))
    return e;
  *clusters = blocks * k.multiprocessors / static_cast<int>(l.cluster);
  return cudaSuccess;
}

FAKE_CUDA_API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned, unsigned long long,
                                                           cudaDriverEntryPointQueryResult* status) {
  const bool is_here = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *found = is_here ? reinterpret_cast<void*>(&encode_tiled) : nullptr;
  if (status) *status = is_here ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
