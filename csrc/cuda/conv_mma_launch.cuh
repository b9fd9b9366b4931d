// The tiles that exist, and a launch to the kernel it names.
#pragma once

#include <type_traits>

#include "cuda/conv_mma.cuh"

namespace atrousops::cuda {

using MmaLarge = MmaTile<128, 128, 64, 64, 4, 2>;
// Two of it have room in 100 KB.
using MmaLargeShort = MmaTile<128, 128, 64, 64, 3, 2>;
using MmaTall = MmaTile<128, 64, 64, 32, 4, 2>;
// Two sums a product leave no registers for that: the same block by twice the warps.
using MmaTallSums = MmaTile<128, 64, 32, 32, 4, 1>;
using MmaSmall = MmaTile<64, 64, 32, 32, 4, 3>;
using MmaNarrow = MmaTile<128, 32, 32, 32, 4, 2>;

template <class Math, class Tile, bool kAlong, bool kWide>
void conv_mma_start(const ConvMmaLaunch& l, Stream stream) {
  const int64_t shared_bytes = conv_mma_shared_bytes(Tile::kRows, Tile::kColumns, Tile::kStages);
  launch<conv_mma_kernel<Math, Tile, kAlong, kWide>>(
      Launch{static_cast<unsigned>(l.blocks), Tile::kThreads, shared_bytes}, stream, l.table, l.args);
}

// In the order of conv_mma_tiles.
template <class Math, bool kAlong>
void conv_mma_start(const ConvMmaLaunch& l, Stream stream) {
  switch (l.tile) {
    case 0:
      if constexpr (!Math::kSumsStages && !kNarrow<Math>)
        return conv_mma_start<Math, MmaLarge, kAlong, true>(l, stream);
      break;
    case 1:
      return conv_mma_start<Math, std::conditional_t<Math::kSumsStages, MmaTallSums, MmaTall>, kAlong, true>(l, stream);
    case 2: return conv_mma_start<Math, MmaSmall, kAlong, true>(l, stream);
    case 3:
      if constexpr (!kNarrow<Math>) return conv_mma_start<Math, MmaNarrow, kAlong, false>(l, stream);
      break;
    case 4:
      if constexpr (!Math::kSumsStages) return conv_mma_start<Math, MmaLargeShort, kAlong, true>(l, stream);
      break;
    default: break;
  }
  STD_TORCH_CHECK(false, "conv: no tensor-core tile ", l.tile, " for this type");
}

}  // namespace atrousops::cuda
