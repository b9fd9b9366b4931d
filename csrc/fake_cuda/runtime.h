// What the parts of the emulated runtime share. Every public function takes the lock; work never runs outside it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "fake_cuda/devices.h"
#include "fake_cuda/kernels.h"

#define FAKE_CUDA_API extern "C" __attribute__((visibility("default")))

namespace fake_cuda {

std::recursive_mutex& mutex();
// A thread that waits for the lock lets Python go on: who has it may wait for Python, to translate a kernel.
class Lock {
 public:
  explicit Lock(std::recursive_mutex& m);
  ~Lock() { mutex_.unlock(); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  std::recursive_mutex& mutex_;
};

// errors.cpp
// The error of a call that failed, which is this thread's last one; $ATROUSOPS_EMULATED_LOG prints `why`.
cudaError_t fail(cudaError_t error, const char* why);
// What the process does not recover from: every later call returns it. `why` is printed.
cudaError_t fail_for_good(cudaError_t error, const char* why);
// Begins a call that needs a context, and makes one current on this thread. Returns what it did not recover from.
cudaError_t enter();
cudaError_t sticky_error();
void make_context_current();
bool has_context();

// device.cpp
int current_device();

// memory.cpp
// The device that memory is on, or -1.
int device_of(const void* p);
bool is_pinned(const void* p);
// Where a device's memory is for the host; other addresses stay as they are.
void* host_address(const void* p);
// Whether bytes lie in one block of the device that has not been freed, and in which.
bool find_block(const void* p, size_t bytes, int device, FakeCudaBlock* found);
bool is_block(const void* p, size_t bytes, int device);
cudaError_t allocate(void** p, size_t bytes, int device);
// Fills a block with NaN and forgets it.
cudaError_t release(void* p);

// variables.cpp
// A variable of that mangled name in a device's global memory, or null.
void* variable_on(int device, const char* name);

// copy.cpp
cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);

// stream.cpp
using Work = std::function<cudaError_t()>;
struct Capture;
// One record of an event. `stream`: where it is queued, until it is done.
struct Record {
  bool done = false;
  cudaStream_t stream = nullptr;
  double milliseconds = 0;
};
struct Item {
  Work work;
  std::shared_ptr<Record> record, wait;
};
// The stream behind a handle: null and cudaStreamLegacy are the current device's own.
cudaStream_t find(cudaStream_t handle);
// Puts work at a stream's end, or into the graph that the stream is being captured into.
cudaError_t enqueue(cudaStream_t handle, Work work);
// Runs all that the stream, or a device's streams, have queued, and what that waits for.
void drain(cudaStream_t stream);
void drain_device(int device);
// A number below n, 0 where no seed is set.
uint64_t draw(uint64_t n);
bool is_shuffled();

// capture.cpp
// A call that capture does not allow: fails, and makes the capture invalid, if one is going on that forbids it.
cudaError_t refuse_in_capture(const char* what);
cudaError_t capture(cudaStream_t stream, Work work);
// Memory that a graph's own allocations took; kept until the graph and what was made of it are gone.
// Whether the memory is a graph's, which then frees it at its own end.
bool free_with_graph(void* p);
void own_by_graph(cudaStream_t stream, void* p);

}  // namespace fake_cuda

struct CUgraphNode_st {
  fake_cuda::Work work;
  std::vector<cudaGraphNode_t> after;
};
struct CUstream_st {
  int device = 0, priority = 0;
  unsigned flags = cudaStreamNonBlocking;
  std::deque<fake_cuda::Item> queue = {};
  fake_cuda::Capture* capture = nullptr;
  // What the next captured node comes after.
  std::vector<cudaGraphNode_t> tail = {};
};
struct CUevent_st {
  int device;
  unsigned flags;
  std::shared_ptr<fake_cuda::Record> last = {};
  // Where it was last recorded in a capture.
  fake_cuda::Capture* capture = nullptr;
  std::vector<cudaGraphNode_t> nodes = {};
};
