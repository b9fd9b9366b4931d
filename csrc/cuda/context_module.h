// The context module as one launch: what its kernel is called with.
#pragma once

#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "core/context.h"
#include "cuda/divisor.h"
#include "cuda/launch.h"

namespace atrousops::cuda {

struct ContextLayer {
  const void *weight, *bias;  // bias may be null
  // Elements from an output channel, an input channel, a kernel row and column to the next.
  int32_t out_stride, in_stride, row_stride, column_stride;
  int32_t dilation;  // of a 3x3 kernel; 0: 1x1
};

struct ContextArgs {
  const void* input;
  void* output;
  // Elements from an image, a channel and a pixel to the next, of both.
  int64_t image_stride;
  int32_t channel_stride, pixel_stride;
  Divisor32 width, rows;  // of the map; of a block, as planned
  int32_t channels, height;
  int32_t halo;  // rows, as planned
  int32_t layers;
  ContextLayer layer[core::kContextLayers];
};

// On compute capability 9.0 and 16-bit types, as planned for `images` images; false, and nothing done, where the device
// has no room for such a cluster.
bool context_module_sm90a(const ContextArgs& args, const core::ContextPlan& plan, int64_t images, ScalarType dtype,
                          Stream stream);

}  // namespace atrousops::cuda
