#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "cuda/conv_wgmma.cuh"

namespace atrousops::cuda {

void conv_wgmma_bf16(const ConvWgmmaLaunch& l, Stream stream) {
  l.along ? conv_wgmma_start<BFloat16, arch::Major::k>(l, stream)
          : conv_wgmma_start<BFloat16, arch::Major::mn>(l, stream);
}

}  // namespace atrousops::cuda
