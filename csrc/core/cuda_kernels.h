// Which of our CUDA kernels runs a convolution: for the planner, which compares it with cuDNN, and for csrc/cuda, which
// starts it. So the one that was planned is the one that runs.
#pragma once

#include "core/problem.h"

namespace atrousops::core {

// How numbers are multiplied: `half` is either 16-bit type; tf32 is fp32 where tf32 may be used for it.
enum class Precision { f64, f32, tf32, half };

// What decides whether tensor cores can do it.
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
// Each takes what those before it leave; the last takes everything.
enum class CudaKernel { depthwise, grouped, wgmma, mma, simt };

// Why a kernel is not the one that runs a problem, or null: it cannot, or one before it is faster.
const char* why_not(CudaKernel kernel, const Problem& problem, int64_t itemsize, const CudaMath& math);
// The first without a reason.
CudaKernel cuda_kernel(const Problem& problem, int64_t itemsize, const CudaMath& math);
// Whether a kernel can run a problem, though one before it is predicted to be faster.
bool can_run(CudaKernel kernel, const Problem& problem, int64_t itemsize, const CudaMath& math);

// Why mma is no way to run a problem, or null; as boxes_cannot and weight_boxes_cannot say it of wgmma.
const char* mma_cannot(const Problem& problem, int64_t itemsize);

}  // namespace atrousops::core
