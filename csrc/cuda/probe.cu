// Whether this library runs on a device, in numbers and words: Python asks before it takes our CUDA kernels there.
#include "cuda/launch.h"

#if !defined(ATROUSOPS_HOST_CUDA)

#include <exception>

namespace atrousops::cuda {
namespace {

__device__ int answer;
__global__ void probe_kernel(int question) { answer = question + 1; }

// Asking is allowed also while another stream of the process is captured.
class OutsideCapture {
 public:
  OutsideCapture() { check_cuda(cudaThreadExchangeStreamCaptureMode(&mode_), "cudaThreadExchangeStreamCaptureMode"); }
  ~OutsideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

class OwnStream {
 public:
  OwnStream() { check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
  ~OwnStream() { cudaStreamDestroy(stream); }
  cudaStream_t stream = nullptr;
};

void run(int device) {
  constexpr int kQuestion = 0x5eed;
  int before = 0, found = 0;
  check_cuda(cudaGetDevice(&before), "cudaGetDevice");
  struct Back {
    int device;
    ~Back() { cudaSetDevice(device); }
  } back{before};
  check_cuda(cudaSetDevice(device), "cudaSetDevice");
  const OutsideCapture outside;
  const OwnStream own;
  launch<probe_kernel>({1, 1}, own.stream, kQuestion);
  check_cuda(cudaMemcpyFromSymbolAsync(&found, answer, sizeof(found), 0, cudaMemcpyDeviceToHost, own.stream),
             "cudaMemcpyFromSymbolAsync");
  check_cuda(cudaStreamSynchronize(own.stream), "cudaStreamSynchronize");
  STD_TORCH_CHECK(found == kQuestion + 1, "a kernel answered ", found, " instead of ", kQuestion + 1);
}

}  // namespace
}  // namespace atrousops::cuda

// CUDA's versions, of the driver and of the runtime in here, 1000 major + 10 minor; 0 where one could not be asked.
extern "C" __attribute__((visibility("default"))) void atrousops_cuda_versions(int* driver, int* runtime) {
  if (cudaDriverGetVersion(driver) != cudaSuccess) *driver = 0;
  if (cudaRuntimeGetVersion(runtime) != cudaSuccess) *runtime = 0;
  cudaGetLastError();
}

// The machine code (sm_90a) and PTX (compute_80) in this library, by commas.
extern "C" __attribute__((visibility("default"))) const char* atrousops_cuda_code() { return ATROUSOPS_CUDA_CODE; }

// Runs a trivial kernel and waits for it; what went wrong is written to `text`, nothing if it ran.
extern "C" __attribute__((visibility("default"))) void atrousops_cuda_probe(int device, char* text, int size) {
  text[0] = '\0';
  try {
    atrousops::cuda::run(device);
  } catch (const std::exception& error) {
    const std::string_view what = error.what();
    text[what.copy(text, static_cast<size_t>(size) - 1)] = '\0';
    if (what.empty()) text[0] = '?', text[1] = '\0';
  }
}

#endif
