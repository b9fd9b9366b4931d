#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "cuda/conv_mma_launch.cuh"

namespace atrousops::cuda {

void conv_mma_e4m3(const ConvMmaLaunch& l, Stream stream) { conv_mma_start<MmaE4m3, true>(l, stream); }

}  // namespace atrousops::cuda
