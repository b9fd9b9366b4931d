// Streams are queues. Work runs when something waits for it, in an order that keeps to streams and events alone: what
// nothing waits for runs last, or, with $ATROUSOPS_EMULATED_SEED, at random times.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>

#include "fake_cuda/runtime.h"

namespace fake_cuda {

static std::vector<cudaStream_t>& streams() {
  static auto* all = [] {
    auto* legacy = new std::vector<cudaStream_t>;
    for (int d = 0; d < device_count(); ++d) legacy->push_back(new CUstream_st{d, 0, cudaStreamDefault});
    return legacy;
  }();
  return *all;
}

static std::mt19937_64& generator() {
  static std::mt19937_64 g;
  return g;
}
static uint64_t& seed() {
  static uint64_t value = [] {
    const char* wish = std::getenv("ATROUSOPS_EMULATED_SEED");
    const uint64_t s = wish ? std::strtoull(wish, nullptr, 10) : 0;
    generator().seed(s);
    return s;
  }();
  return value;
}
bool is_shuffled() { return seed() != 0; }
uint64_t draw(uint64_t n) { return is_shuffled() ? generator()() % n : 0; }

static cudaStream_t find_on(int device, cudaStream_t handle) {
  const bool is_legacy = handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread;
  return is_legacy ? streams()[static_cast<size_t>(device)] : handle;
}
cudaStream_t find(cudaStream_t handle) { return find_on(current_device(), handle); }

static double now() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Runs one item, of this stream or of one that it waits for.
static void advance(cudaStream_t s) {
  while (s->queue.front().wait && !s->queue.front().wait->done) s = s->queue.front().wait->stream;
  const Item item = std::move(s->queue.front());
  s->queue.pop_front();
  if (item.work) item.work();
  if (!item.record) return;
  item.record->done = true;
  item.record->milliseconds = now();
}

static void advance_some_other() {
  std::vector<cudaStream_t> busy;
  for (cudaStream_t s : streams())
    if (!s->queue.empty()) busy.push_back(s);
  if (!busy.empty()) advance(busy[draw(busy.size())]);
}

void drain(cudaStream_t s) {
  while (!s->queue.empty()) {
    if (is_shuffled() && draw(2)) advance_some_other();
    if (!s->queue.empty()) advance(s);
  }
}
void drain_device(int device) {
  for (cudaStream_t s : streams())
    if (s->device == device) drain(s);
}

// The legacy stream and those that are not cudaStreamNonBlocking wait for each other.
static void order_with_legacy(cudaStream_t s) {
  if (s->flags & cudaStreamNonBlocking) return;
  const bool is_legacy = s == streams()[static_cast<size_t>(s->device)];
  for (cudaStream_t other : streams()) {
    const bool other_is_legacy = other == streams()[static_cast<size_t>(other->device)];
    if (other->device == s->device && !(other->flags & cudaStreamNonBlocking) && is_legacy != other_is_legacy)
      drain(other);
  }
}

static void append(cudaStream_t s, Item item) {
  order_with_legacy(s);
  s->queue.push_back(std::move(item));
  if (is_shuffled() && draw(4) == 0) advance_some_other();
}

cudaError_t enqueue(cudaStream_t handle, Work work) {
  cudaStream_t s = find(handle);
  if (s->capture) return capture(s, std::move(work));
  append(s, {std::move(work), nullptr, nullptr});
  return cudaSuccess;
}

static cudaError_t make_stream(cudaStream_t* made, unsigned flags, int priority) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  *made = new CUstream_st{current_device(), priority, flags};
  streams().push_back(*made);
  return cudaSuccess;
}

}  // namespace fake_cuda

using namespace fake_cuda;

FAKE_CUDA_API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int priority) {
  return make_stream(s, flags, priority);
}
FAKE_CUDA_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
  return make_stream(s, flags, 0);
}
FAKE_CUDA_API cudaError_t cudaStreamCreate(cudaStream_t* s) { return make_stream(s, cudaStreamDefault, 0); }
FAKE_CUDA_API cudaError_t cudaStreamDestroy(cudaStream_t s) {
  Lock lock(mutex());
  drain(s);
  std::erase(streams(), s);
  delete s;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaStreamGetPriority(cudaStream_t s, int* priority) {
  Lock lock(mutex());
  *priority = find(s)->priority;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  cudaStream_t s = find(handle);
  if (s->capture) return refuse_in_capture("cudaStreamSynchronize");
  drain(s);
  return enter();
}
FAKE_CUDA_API cudaError_t cudaStreamQuery(cudaStream_t handle) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  cudaStream_t s = find(handle);
  if (s->capture) return refuse_in_capture("cudaStreamQuery");
  // Whoever asks again and again sees the stream go on.
  if (s->queue.empty()) return cudaSuccess;
  advance(s);
  return cudaErrorNotReady;
}
FAKE_CUDA_API cudaError_t cudaDeviceSynchronize() {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  if (const cudaError_t e = refuse_in_capture("cudaDeviceSynchronize")) return e;
  drain_device(current_device());
  return enter();
}
FAKE_CUDA_API cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void* data) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  return enqueue(s, [f, data] {
    f(data);
    return cudaSuccess;
  });
}

// Events.
FAKE_CUDA_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  *event = new CUevent_st{current_device(), flags};
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
FAKE_CUDA_API cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Lock lock(mutex());
  delete event;
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t handle, unsigned) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  cudaStream_t s = find(handle);
  if (event->device != s->device) return fail(cudaErrorInvalidResourceHandle, "event and stream of two devices");
  event->capture = s->capture;
  event->nodes = s->tail;
  if (s->capture) return cudaSuccess;
  event->last = std::make_shared<Record>(Record{false, s});
  append(s, {nullptr, event->last, nullptr});
  return cudaSuccess;
}
FAKE_CUDA_API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return cudaEventRecordWithFlags(e, s, 0); }
FAKE_CUDA_API cudaError_t cudaEventQuery(cudaEvent_t event) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  if (event->capture) return fail(cudaErrorCapturedEvent, "cudaEventQuery");
  if (!event->last || event->last->done) return cudaSuccess;
  advance(event->last->stream);
  return cudaErrorNotReady;
}
FAKE_CUDA_API cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  if (event->capture) return fail(cudaErrorCapturedEvent, "cudaEventSynchronize");
  while (event->last && !event->last->done) advance(event->last->stream);
  return enter();
}
// Of the emulation's own clock: says nothing about a device.
FAKE_CUDA_API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  Lock lock(mutex());
  if (!begin->last || !end->last) return fail(cudaErrorInvalidResourceHandle, "an event that was never recorded");
  if (!begin->last->done || !end->last->done) return cudaErrorNotReady;
  *milliseconds = static_cast<float>(end->last->milliseconds - begin->last->milliseconds);
  return cudaSuccess;
}

// For torch's own operators: what the stream still has to do before them. Returns 1 if it is being captured, and -1 if
// the device has failed for good.
FAKE_CUDA_API int fake_cuda_catch_up(int device, cudaStream_t handle) {
  Lock lock(mutex());
  make_context_current();
  cudaStream_t s = find_on(device, handle);
  if (s->capture) return 1;
  order_with_legacy(s);
  drain(s);
  return sticky_error() == cudaSuccess ? 0 : -1;
}
FAKE_CUDA_API void fake_cuda_set_seed(uint64_t value) {
  Lock lock(mutex());
  seed() = value;
  generator().seed(value);
}
