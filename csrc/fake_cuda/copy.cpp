// Copies and fills. A copy from pageable host memory has read it when the call returns, and one to it waits; pinned
// memory is read and written when the stream comes to it.
#include <cstring>

#include "fake_cuda/runtime.h"

namespace fake_cuda {

static bool agree(const void* to, const void* from, cudaMemcpyKind kind) {
  const bool to_device = device_of(to) >= 0, from_device = device_of(from) >= 0;
  switch (kind) {
    case cudaMemcpyHostToHost: return !to_device && !from_device;
    case cudaMemcpyHostToDevice: return to_device && !from_device;
    case cudaMemcpyDeviceToHost: return !to_device && from_device;
    case cudaMemcpyDeviceToDevice: return to_device && from_device;
    default: return true;
  }
}

static bool is_reachable(const void* p, size_t bytes) {
  const int device = device_of(p);
  return device < 0 || is_block(p, bytes, device);
}

static cudaError_t move(void* to, const void* from, size_t bytes) {
  if (!is_reachable(to, bytes) || !is_reachable(from, bytes))
    return fail_for_good(cudaErrorIllegalAddress, "a copy beyond a block, or of freed memory");
  std::memmove(host_address(to), host_address(from), bytes);
  return cudaSuccess;
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (const cudaError_t e = enter()) return e;
  if (!agree(to, from, kind)) return fail(cudaErrorInvalidValue, "the kind of copy and its addresses disagree");
  if (bytes == 0) return cudaSuccess;
  const auto is_pageable = [](const void* p) { return device_of(p) < 0 && !is_pinned(p); };
  if (is_pageable(to)) {
    if (find(stream)->capture) return refuse_in_capture("a copy to pageable memory");
    if (const cudaError_t e = enqueue(stream, [=] { return move(to, from, bytes); })) return e;
    drain(find(stream));
    return enter();
  }
  if (is_pageable(from)) {
    if (find(stream)->capture) return refuse_in_capture("a copy from pageable memory");
    auto staged =
        std::make_shared<std::vector<char>>(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
    return enqueue(stream, [=] { return move(to, staged->data(), bytes); });
  }
  return enqueue(stream, [=] { return move(to, from, bytes); });
}

static cudaError_t fill(void* to, int value, size_t bytes) {
  if (!is_reachable(to, bytes)) return fail_for_good(cudaErrorIllegalAddress, "cudaMemset beyond a block");
  std::memset(host_address(to), value, bytes);
  return cudaSuccess;
}

}  // namespace fake_cuda

using namespace fake_cuda;

FAKE_CUDA_API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                          cudaStream_t s) {
  Lock lock(mutex());
  return copy(to, from, bytes, kind, s);
}
FAKE_CUDA_API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  Lock lock(mutex());
  if (const cudaError_t e = refuse_in_capture("cudaMemcpy")) return e;
  if (const cudaError_t e = copy(to, from, bytes, kind, nullptr)) return e;
  drain(find(nullptr));
  return enter();
}
FAKE_CUDA_API cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t s) {
  Lock lock(mutex());
  return copy(to, from, bytes, cudaMemcpyDeviceToDevice, s);
}
FAKE_CUDA_API cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                                            size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t s) {
  Lock lock(mutex());
  for (size_t row = 0; row < height; ++row)
    if (const cudaError_t e = copy(static_cast<char*>(to) + row * to_pitch,
                                   static_cast<const char*>(from) + row * from_pitch, width, kind, s))
      return e;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t s) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  return enqueue(s, [=] { return fill(to, value, bytes); });
}
FAKE_CUDA_API cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  Lock lock(mutex());
  if (const cudaError_t e = refuse_in_capture("cudaMemset")) return e;
  return cudaMemsetAsync(to, value, bytes, nullptr);
}
