// The choice of our CUDA kernel for a convolution. The planner, which compares it with cuDNN, and csrc/cuda, which
// launches it, both use this file, so that the planned kernel is the one that runs.
#pragma once

#include "core/problem.h"

namespace atrousops::core {

// The precision of multiplications: `half` is either 16-bit type; tf32 is fp32 if TF32 is allowed.
enum class Precision { f64, f32, tf32, half };

// The facts that decide whether tensor cores can run it.
struct CudaMath {
  int64_t capability = 0;
  Precision precision = Precision::half;

  bool has_mma() const { return capability >= 80 && precision != Precision::f64; }
  bool has_wgmma() const { return capability == 90 && (precision == Precision::half || precision == Precision::tf32); }
};

// depthwise  a loop over taps, vectorised along channels
// grouped    the same for groups of few channels
// wgmma      a GEMM over the live taps of boxes of positions, by TMA and wgmma
// mma        a GEMM over the live taps of each region, on tensor cores
// simt       the same without tensor cores
// Each kernel runs what the previous ones cannot; the last runs everything.
enum class CudaKernel { depthwise, grouped, wgmma, mma, simt };

// Why a kernel does not run a problem, or null: it cannot, or a previous one is faster.
const char* why_not(CudaKernel kernel, const Problem& problem, int64_t itemsize, const CudaMath& math);
// The first without a reason.
CudaKernel cuda_kernel(const Problem& problem, int64_t itemsize, const CudaMath& math);
// Whether a kernel can run a problem, even if a previous one is predicted to be faster.
bool can_run(CudaKernel kernel, const Problem& problem, int64_t itemsize, const CudaMath& math);

// Why mma cannot run a problem, or null; boxes_cannot and weight_boxes_cannot are the same for wgmma.
const char* mma_cannot(const Problem& problem, int64_t itemsize);

}  // namespace atrousops::core
