// Products that are rounded before anything is added to them.
#pragma once

#include "cuda/platform.h"

namespace atrousops::cuda {

// Never contracted to a fused multiply-add: which pixel a sample reads, or whether a lattice vertex exists, depends
// on the last bit, and has to be as on the CPU.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

}  // namespace atrousops::cuda
