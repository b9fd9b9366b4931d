#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "cuda/conv_wgmma.cuh"

namespace atrousops::cuda {

void conv_wgmma_s8(const ConvWgmmaLaunch& l, Stream stream) { conv_wgmma_start_bytes<int8_t>(l, stream); }

}  // namespace atrousops::cuda
