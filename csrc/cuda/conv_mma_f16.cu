#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "cuda/conv_mma_launch.cuh"
#include "cuda/conv_mma_weight_launch.cuh"

namespace atrousops::cuda {

void conv_mma_f16(const ConvMmaLaunch& l, Stream stream) {
  l.along ? conv_mma_start<Mma16<Half>, true>(l, stream) : conv_mma_start<Mma16<Half>, false>(l, stream);
}

void conv_mma_weight_f16(const ConvMmaWeightLaunch& l, Stream stream) { conv_mma_weight_start<Mma16<Half>>(l, stream); }

}  // namespace atrousops::cuda
