#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "cuda/conv_wgmma.cuh"

namespace atrousops::cuda {

// wgmma reads words of 32 bits along the reduction only.
void conv_wgmma_tf32(const ConvWgmmaLaunch& l, Stream stream) { conv_wgmma_start<float, arch::Major::k>(l, stream); }

}  // namespace atrousops::cuda
