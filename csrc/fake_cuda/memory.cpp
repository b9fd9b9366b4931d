// Device memory: a range of addresses for each device, which nobody can touch, and the bytes themselves at a fixed
// distance, for copies, launches and torch's operators. Addresses are never used twice, so that a pointer to
// freed memory is known; new and freed memory is filled with NaN.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "fake_cuda/runtime.h"

namespace fake_cuda {

static constexpr uintptr_t kFirst = 0x100000000000, kRange = uintptr_t{1} << 42;
// Blocks begin at multiples of it, and nothing is within as many bytes of a block's end.
static constexpr size_t kAlignment = 512;
// Freed memory keeps its NaN until so many bytes have been freed later.
static constexpr size_t kPoisonedBytes = size_t{64} << 20;
static constexpr size_t kPage = 4096;
// From a device's address to its bytes.
static constexpr size_t kToBytes = kRange / 2;

struct Range {
  char *base = nullptr, *top = nullptr;
  size_t used = 0, poisoned = 0;
  std::map<char*, size_t> blocks;
  std::deque<std::pair<char*, size_t>> freed;
};
static Range ranges[16];
static std::map<const char*, size_t> pinned;

int device_of(const void* p) {
  const auto a = reinterpret_cast<uintptr_t>(p);
  if (a < kFirst || a >= kFirst + kRange * static_cast<uintptr_t>(device_count())) return -1;
  return (a - kFirst) % kRange < kToBytes ? static_cast<int>((a - kFirst) / kRange) : -1;
}

void* host_address(const void* p) {
  char* const address = static_cast<char*>(const_cast<void*>(p));
  return device_of(p) < 0 ? address : address + kToBytes;
}

bool find_block(const void* p, size_t bytes, int device, FakeCudaBlock* found) {
  const Range& r = ranges[device];
  auto* const begin = static_cast<char*>(const_cast<void*>(p));
  auto block = r.blocks.upper_bound(begin);
  if (block == r.blocks.begin()) return false;
  --block;
  *found = {block->first, block->second, block->first + kToBytes};
  return begin + bytes <= block->first + block->second;
}
bool is_block(const void* p, size_t bytes, int device) {
  FakeCudaBlock block;
  return find_block(p, bytes, device, &block);
}

bool is_pinned(const void* p) {
  auto block = pinned.upper_bound(static_cast<const char*>(p));
  if (block == pinned.begin()) return false;
  --block;
  return static_cast<const char*>(p) < block->first + block->second;
}

static bool reserve(Range& r, int device) {
  if (r.base) return true;
  void* const wanted = reinterpret_cast<void*>(kFirst + kRange * static_cast<uintptr_t>(device));
  void* const got =
      mmap(wanted, kRange, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (got != wanted || mprotect(host_address(wanted), kRange - kToBytes, PROT_READ | PROT_WRITE) != 0) return false;
  r.base = r.top = static_cast<char*>(got);
  return true;
}

cudaError_t allocate(void** p, size_t bytes, int device) {
  Range& r = ranges[device];
  *p = nullptr;
  if (bytes == 0) return cudaSuccess;
  const size_t room = (bytes + 2 * kAlignment - 1) / kAlignment * kAlignment;
  if (bytes > device_kind(device).memory_bytes - r.used) return fail(cudaErrorMemoryAllocation, "the device is full");
  if (!reserve(r, device)) return fail(cudaErrorMemoryAllocation, "the range of addresses is taken");
  char* const begin = r.top;
  r.top += room;
  r.used += bytes;
  r.blocks[begin] = bytes;
  // More is not written: what a test only reserves takes no memory.
  std::memset(host_address(begin), 0xff, bytes < kPoisonedBytes ? bytes : kPoisonedBytes);
  *p = begin;
  return cudaSuccess;
}

static void forget_oldest(Range& r) {
  const auto [begin, bytes] = r.freed.front();
  r.freed.pop_front();
  r.poisoned -= bytes;
  const auto memory = reinterpret_cast<uintptr_t>(host_address(begin));
  const uintptr_t first = (memory + kPage - 1) / kPage * kPage, end = (memory + bytes) / kPage * kPage;
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

cudaError_t release(void* p) {
  if (p == nullptr) return cudaSuccess;
  const int device = device_of(p);
  if (device < 0) return fail(cudaErrorInvalidValue, "free of memory that is not a device's");
  Range& r = ranges[device];
  const auto block = r.blocks.find(static_cast<char*>(p));
  if (block == r.blocks.end()) return fail(cudaErrorInvalidValue, "free of what is no block");
  const auto [begin, bytes] = *block;
  if (bytes <= kPoisonedBytes) std::memset(host_address(begin), 0xff, bytes);
  r.blocks.erase(block);
  r.used -= bytes;
  r.freed.emplace_back(begin, bytes);
  r.poisoned += bytes;
  while (r.poisoned > kPoisonedBytes) forget_oldest(r);
  return cudaSuccess;
}

}  // namespace fake_cuda

using namespace fake_cuda;

FAKE_CUDA_API cudaError_t cudaMalloc(void** p, size_t bytes) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  if (const cudaError_t e = refuse_in_capture("cudaMalloc")) return e;
  return allocate(p, bytes, current_device());
}
FAKE_CUDA_API cudaError_t cudaFree(void* p) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  if (const cudaError_t e = refuse_in_capture("cudaFree")) return e;
  if (p && device_of(p) >= 0) drain_device(device_of(p));
  return release(p);
}
FAKE_CUDA_API cudaError_t cudaMallocAsync(void** p, size_t bytes, cudaStream_t stream) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  const cudaError_t e = allocate(p, bytes, find(stream)->device);
  if (e == cudaSuccess && find(stream)->capture) own_by_graph(find(stream), *p);
  return e;
}
// What comes earlier in the stream may use the memory; what comes later, and other streams without an event, finds NaN.
FAKE_CUDA_API cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  if (free_with_graph(p)) return cudaSuccess;
  if (p && device_of(p) < 0) return fail(cudaErrorInvalidValue, "cudaFreeAsync of memory that is not a device's");
  return enqueue(stream, [p] { return release(p); });
}

FAKE_CUDA_API cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  if (const cudaError_t e = refuse_in_capture("cudaHostAlloc")) return e;
  const size_t room = (bytes + kPage - 1) / kPage * kPage;
  *p = std::aligned_alloc(kPage, room);
  if (!*p) return fail(cudaErrorMemoryAllocation, "cudaHostAlloc");
  pinned[static_cast<char*>(*p)] = room;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaFreeHost(void* p) {
  Lock lock(mutex());
  for (int d = 0; d < device_count(); ++d) drain_device(d);
  if (p && pinned.erase(static_cast<char*>(p)) == 0) return fail(cudaErrorInvalidValue, "cudaFreeHost");
  std::free(p);
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaHostRegister(void* p, size_t bytes, unsigned) {
  Lock lock(mutex());
  pinned[static_cast<char*>(p)] = bytes;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaHostUnregister(void* p) {
  Lock lock(mutex());
  return pinned.erase(static_cast<char*>(p)) ? cudaSuccess : fail(cudaErrorInvalidValue, "cudaHostUnregister");
}

FAKE_CUDA_API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  *total = device_kind(current_device()).memory_bytes;
  *free = *total - ranges[current_device()].used;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  Lock lock(mutex());
  std::memset(a, 0, sizeof(*a));
  a->device = device_of(p);
  a->type = a->device >= 0 ? cudaMemoryTypeDevice : is_pinned(p) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  if (a->device >= 0 || is_pinned(p)) a->devicePointer = const_cast<void*>(p);
  if (a->type != cudaMemoryTypeDevice) a->hostPointer = const_cast<void*>(p);
  return cudaSuccess;
}

// A device's one pool; its thresholds mean nothing here.
FAKE_CUDA_API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  *pool = reinterpret_cast<cudaMemPool_t>(&ranges[device]);
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
FAKE_CUDA_API cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr a, void* value) {
  const bool is_flag = a == cudaMemPoolReuseFollowEventDependencies || a == cudaMemPoolReuseAllowOpportunistic ||
                       a == cudaMemPoolReuseAllowInternalDependencies;
  if (is_flag)
    *static_cast<int*>(value) = 0;
  else
    *static_cast<uint64_t*>(value) = reinterpret_cast<Range*>(pool)->used;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
FAKE_CUDA_API cudaError_t cudaMemPoolSetAccess(cudaMemPool_t, const cudaMemAccessDesc*, size_t) { return cudaSuccess; }
FAKE_CUDA_API cudaError_t cudaDeviceGetGraphMemAttribute(int device, cudaGraphMemAttributeType, void* value) {
  *static_cast<uint64_t*>(value) = ranges[device].used;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaDeviceSetGraphMemAttribute(int, cudaGraphMemAttributeType, void*) { return cudaSuccess; }

// For torch's own operators, which the CPU's kernels compute.
FAKE_CUDA_API size_t fake_cuda_to_bytes() { return kToBytes; }
