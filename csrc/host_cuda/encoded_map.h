// A tensor map as the emulations keep it in the 128 bytes that CUDA gives one; the hardware's format is not public.
#pragma once

#include <cstdint>

namespace atrousops::host_cuda {

// Dimension 0 is the innermost one. Codes are those of cuda.h.
struct alignas(64) EncodedMap {
  static constexpr uint32_t kMark = 0x50414d54;
  uint32_t mark;
  uint8_t type, rank, swizzle, fill;
  uint64_t address;
  uint64_t strides[4];  // bytes, from dimension 1 on
  uint32_t last[5];     // sizes less 1
  uint16_t box[5];
  uint8_t element_strides[5];
};
static_assert(sizeof(EncodedMap) <= 128);

}  // namespace atrousops::host_cuda
