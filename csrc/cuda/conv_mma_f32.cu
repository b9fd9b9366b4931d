#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "cuda/conv_mma_launch.cuh"
#include "cuda/conv_mma_weight_launch.cuh"

namespace atrousops::cuda {

void conv_mma_tf32(const ConvMmaLaunch& l, Stream stream) { conv_mma_start<MmaTf32, true>(l, stream); }
void conv_mma_split(const ConvMmaLaunch& l, Stream stream) { conv_mma_start<MmaSplit, true>(l, stream); }
void conv_mma_weight_tf32(const ConvMmaWeightLaunch& l, Stream stream) { conv_mma_weight_start<MmaTf32>(l, stream); }
void conv_mma_weight_split(const ConvMmaWeightLaunch& l, Stream stream) { conv_mma_weight_start<MmaSplit>(l, stream); }

}  // namespace atrousops::cuda
