// The weight gradient's tiles, and a launch to the kernel it names.
#pragma once

#include "cuda/conv_mma_weight.cuh"

namespace atrousops::cuda {

template <class Math, class Tile, bool kWide>
void conv_mma_weight_start(const ConvMmaWeightLaunch& l, Stream stream) {
  const int64_t shared_bytes = conv_mma_weight_shared_bytes(Tile::kRows, Tile::kColumns, Tile::kStages,
                                                            ConvMmaWeight<Math, Tile, kWide>::kDepth);
  launch<conv_mma_weight_kernel<Math, Tile, kWide>>(
      Launch{static_cast<unsigned>(l.blocks), Tile::kThreads, shared_bytes}, stream, l.table, l.args);
}

// In the order of conv_mma_weight_tiles.
template <class Math>
void conv_mma_weight_start(const ConvMmaWeightLaunch& l, Stream stream) {
  switch (l.tile) {
    case 0:
      if constexpr (!Math::kSumsStages)
        return conv_mma_weight_start<Math, MmaTile<128, 128, 64, 64, 4, 2>, true>(l, stream);
      break;
    case 1: return conv_mma_weight_start<Math, MmaTile<64, 64, 32, 32, 4, 3>, true>(l, stream);
    case 2: return conv_mma_weight_start<Math, MmaTile<64, 64, 32, 32, 4, 2>, false>(l, stream);
    case 3:
      if constexpr (!Math::kSumsStages)
        return conv_mma_weight_start<Math, MmaTile<128, 128, 64, 64, 3, 2>, true>(l, stream);
      break;
    default: break;
  }
  STD_TORCH_CHECK(false, "conv_grad_weight: no tensor-core tile ", l.tile, " for this type");
}

}  // namespace atrousops::cuda
