#include "core/cuda_kernels.h"

#include "core/plan_candidates.h"
#include "core/weight_boxes.h"

namespace atrousops::core {
namespace {

// Too few channels per group for a GEMM's tile.
bool few_channels(const Problem& p) { return (p.c / p.groups) * (p.k / p.groups) <= (p.groups > 1 ? 64 : 4); }

bool looped(const Problem& p) { return few_channels(p) && (p.groups > 1 || p.kind != Kind::weight_grad); }

const char* no_depthwise(const Problem& p) {
  return one_channel(p) && p.c == p.k ? nullptr : "not one channel in and out a group";
}

const char* no_wgmma(const Problem& p, int64_t itemsize, const CudaMath& math) {
  if (!math.has_wgmma()) return "no wgmma for the dtype on the device";
  return p.kind == Kind::weight_grad ? weight_boxes_cannot(p, itemsize) : boxes_cannot(p, itemsize);
}

const char* no_mma(const Problem& p, int64_t itemsize, const CudaMath& math) {
  if (!math.has_mma()) return "no tensor cores for the dtype on the device";
  if (no_wgmma(p, itemsize, math) == nullptr) return "wgmma can run it";
  if (looped(p)) return "few channels a group are a case for a loop";
  return mma_cannot(p, itemsize);
}

}  // namespace

const char* mma_cannot(const Problem& p, int64_t itemsize) {
  const int64_t depth = itemsize == 4 ? 16 : 32;
  const bool shallow = p.kind != Kind::weight_grad && 4 * (width_and_depth(p).second / p.groups) < depth;
  return shallow ? "too few channels for the depth of a step" : nullptr;
}

const char* why_not(CudaKernel kernel, const Problem& p, int64_t itemsize, const CudaMath& math) {
  switch (kernel) {
    case CudaKernel::depthwise: return no_depthwise(p);
    case CudaKernel::grouped:
      if (no_depthwise(p) == nullptr) return "one channel in and out a group is a case for depthwise";
      return looped(p) ? nullptr : "too many channels a group for a loop";
    case CudaKernel::wgmma: return no_wgmma(p, itemsize, math);
    case CudaKernel::mma: return no_mma(p, itemsize, math);
    default: break;
  }
  if (looped(p)) return "few channels a group are a case for a loop";
  const bool tensor = no_wgmma(p, itemsize, math) == nullptr || no_mma(p, itemsize, math) == nullptr;
  return tensor ? "tensor cores can run it" : nullptr;
}

CudaKernel cuda_kernel(const Problem& p, int64_t itemsize, const CudaMath& math) {
  for (const CudaKernel kernel : {CudaKernel::depthwise, CudaKernel::grouped, CudaKernel::wgmma, CudaKernel::mma})
    if (why_not(kernel, p, itemsize, math) == nullptr) return kernel;
  return CudaKernel::simt;
}

bool can_run(CudaKernel kernel, const Problem& p, int64_t itemsize, const CudaMath& math) {
  switch (kernel) {
    case CudaKernel::depthwise: return no_depthwise(p) == nullptr;
    // The weight gradient with one channel per group has the same kernel under both names.
    case CudaKernel::grouped: return looped(p) && (p.kind != Kind::weight_grad || no_depthwise(p) != nullptr);
    case CudaKernel::wgmma: return no_wgmma(p, itemsize, math) == nullptr;
    case CudaKernel::mma: return !looped(p) && math.has_mma() && mma_cannot(p, itemsize) == nullptr;
    // Without tensor cores there is no weight gradient in 16 bits.
    default: return !looped(p) && (p.kind != Kind::weight_grad || math.precision != Precision::half);
  }
}

}  // namespace atrousops::core
