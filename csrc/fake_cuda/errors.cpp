// Errors: the last one of each thread, and those that a device does not recover from.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "fake_cuda/runtime.h"

namespace fake_cuda {

static thread_local cudaError_t last = cudaSuccess;
static thread_local bool context = false;
static cudaError_t sticky = cudaSuccess;
static std::string& last_why() {
  static auto* text = new std::string;
  return *text;
}

std::recursive_mutex& mutex() {
  static auto* m = new std::recursive_mutex;
  return *m;
}

namespace {
// Of the Python that the process runs, if it does.
struct Python {
  int (*is_initialized)();
  int (*is_held)();  // by this thread
  void* (*release)();
  void (*take)(void*);
};
template <class F>
void find(const char* name, F*& f) {
  f = reinterpret_cast<F*>(dlsym(RTLD_DEFAULT, name));
}
const Python& python() {
  static const Python found = [] {
    Python p{};
    find("Py_IsInitialized", p.is_initialized);
    find("PyGILState_Check", p.is_held);
    find("PyEval_SaveThread", p.release);
    find("PyEval_RestoreThread", p.take);
    return p;
  }();
  return found;
}
}  // namespace

Lock::Lock(std::recursive_mutex& m) : mutex_(m) {
  if (m.try_lock()) return;
  const Python& p = python();
  const bool holds = p.release && p.take && p.is_initialized && p.is_initialized() && p.is_held && p.is_held();
  void* const state = holds ? p.release() : nullptr;
  m.lock();
  if (holds) p.take(state);
}

cudaError_t fail(cudaError_t error, const char* why) {
  static const bool log = std::getenv("ATROUSOPS_EMULATED_LOG") != nullptr;
  if (log) std::fprintf(stderr, "emulated CUDA: error %d: %s\n", static_cast<int>(error), why);
  Lock lock(mutex());
  last_why() = why;
  return last = error;
}

cudaError_t fail_for_good(cudaError_t error, const char* why) {
  std::fprintf(stderr, "emulated CUDA: %s\n", why);
  sticky = error;
  last_why() = why;
  return last = error;
}

cudaError_t sticky_error() { return sticky; }
void make_context_current() { context = true; }
bool has_context() { return context; }

cudaError_t enter() {
  context = true;
  return sticky == cudaSuccess ? cudaSuccess : (last = sticky);
}

struct Named {
  cudaError_t code;
  const char *name, *text;
};
#define ERROR(code, text) {code, #code, text}
static constexpr Named kNames[] = {
    ERROR(cudaSuccess, "no error"),
    ERROR(cudaErrorInvalidValue, "invalid argument"),
    ERROR(cudaErrorMemoryAllocation, "out of memory"),
    ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    ERROR(cudaErrorInvalidDeviceFunction, "invalid device function"),
    ERROR(cudaErrorInvalidSymbol, "invalid device symbol"),
    ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    ERROR(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device"),
    ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ERROR(cudaErrorNotReady, "device not ready"),
    ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    ERROR(cudaErrorNotSupported, "operation not supported"),
    ERROR(cudaErrorInvalidClusterSize, "invalid cluster size"),
    ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    ERROR(cudaErrorStreamCaptureImplicit,
          "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    ERROR(cudaErrorStreamCaptureWrongThread,
          "attempt to terminate a thread-local capture sequence from another thread"),
    ERROR(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    ERROR(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    ERROR(cudaErrorDeviceUninitialized, "invalid device context"),
    ERROR(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
    ERROR(cudaErrorPeerAccessUnsupported, "peer access is not supported between these two devices"),
};
#undef ERROR

static const Named* find(cudaError_t e) {
  for (const Named& n : kNames)
    if (n.code == e) return &n;
  return nullptr;
}

}  // namespace fake_cuda

using namespace fake_cuda;

FAKE_CUDA_API cudaError_t cudaGetLastError() {
  const cudaError_t e = last;
  last = sticky;
  return e;
}
FAKE_CUDA_API cudaError_t cudaPeekAtLastError() { return last; }
FAKE_CUDA_API const char* cudaGetErrorName(cudaError_t e) {
  const Named* n = find(e);
  return n ? n->name : "an error that the emulated runtime has no name for";
}
FAKE_CUDA_API const char* cudaGetErrorString(cudaError_t e) {
  const Named* n = find(e);
  return n ? n->text : "an error that the emulated runtime has no text for";
}
// Why the last call that failed did, of any thread.
FAKE_CUDA_API const char* fake_cuda_why() { return last_why().c_str(); }
// For tests of the emulation alone: a process cannot do this on hardware.
FAKE_CUDA_API void fake_cuda_forget_errors() {
  Lock lock(mutex());
  sticky = last = cudaSuccess;
}
FAKE_CUDA_API void fake_cuda_forget_context() { context = false; }
