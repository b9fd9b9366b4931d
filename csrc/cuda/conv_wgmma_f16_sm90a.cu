#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "cuda/conv_wgmma.cuh"

namespace atrousops::cuda {

void conv_wgmma_f16(const ConvWgmmaLaunch& l, Stream stream) {
  l.along ? conv_wgmma_start<Half, arch::Major::k>(l, stream) : conv_wgmma_start<Half, arch::Major::mn>(l, stream);
}

}  // namespace atrousops::cuda
