#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "cuda/conv_wgmma.cuh"

namespace atrousops::cuda {

void conv_wgmma_e4m3(const ConvWgmmaLaunch& l, Stream stream) { conv_wgmma_start_bytes<Float8_e4m3fn>(l, stream); }

}  // namespace atrousops::cuda
