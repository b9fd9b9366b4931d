// Tensor maps: what the TMA unit must know of a tensor in global memory and of the boxes that are copied.
//
// Dimension 0 is the innermost one, whose elements lie side by side: NHWC is {C, W, H, N}. Encoding is asked of the
// driver, which is looked up when the first map is made; the library itself does without.
#pragma once

#include <cstdint>

#include "cuda/platform.h"

#if defined(ATROUSOPS_HOST_CUDA)
#include "host_cuda/encoded_map.h"
#endif

namespace atrousops::cuda {

// Chunks of 16 bytes exchange their places within a line of 128 bytes, by bits of the shared address from 7 on.
// Numbered as tensor maps have them; a matrix descriptor of wgmma numbers them otherwise.
enum class Swizzle { none = 0, bytes_32 = 1, bytes_64 = 2, bytes_128 = 3 };

// Bytes of a box's innermost row that is swizzled, and the distance after which the pattern repeats.
constexpr int swizzle_span(Swizzle s) { return 16 << static_cast<int>(s); }
constexpr int swizzle_period(Swizzle s) { return s == Swizzle::none ? 128 : 8 * swizzle_span(s); }
// Where the byte at this shared address is found.
__host__ __device__ constexpr uint32_t swizzled(uint32_t address, Swizzle s) {
  return address ^ (address >> 7 & ((1u << static_cast<int>(s)) - 1)) << 4;
}

// tf32: words of fp32 that the copy rounds. To the nearest, ties to even, as the manual says of its float types; not
// verified on hardware. u8: bytes, whatever they stand for.
enum class TensorMapType { f16, bf16, f32, tf32, u8 };
constexpr int bytes_of(TensorMapType t) {
  return t == TensorMapType::u8 ? 1 : t == TensorMapType::f16 || t == TensorMapType::bf16 ? 2 : 4;
}

// The most elements that a box reaches over along a dimension, and that it steps over.
constexpr int64_t kMostOfBox = 256, kMostStep = 8;

struct TensorMapArguments {
  TensorMapType type;
  int rank;
  const void* address;
  int64_t sizes[5];
  // In bytes; that of dimension 0 is the element's size and not read.
  int64_t strides[5];
  // Elements of the tensor that a box reaches over; every element_strides-th is copied, those outside become zero.
  int box[5];
  int element_strides[5];
  Swizzle swizzle;
};

// Elements that a box has along a dimension once it lies in shared memory. Dimension 0 is always copied whole.
constexpr int box_extent(const TensorMapArguments& a, int dimension) {
  return dimension == 0 ? a.box[0]
                        : (a.box[dimension] + a.element_strides[dimension] - 1) / a.element_strides[dimension];
}
// What a load adds to the bytes of its mbarrier, wherever the box lies, zeros included. The manual does not say so of
// zeros nor of element strides; others' kernels count so, hardware has not confirmed it here.
constexpr int box_bytes(const TensorMapArguments& a) {
  int bytes = bytes_of(a.type);
  for (int i = 0; i < a.rank; ++i) bytes *= box_extent(a, i);
  return bytes;
}

// A kernel takes it as `const __grid_constant__ TensorMap`, and hands on its address.
#if defined(ATROUSOPS_HOST_CUDA)
struct alignas(128) TensorMap {
  host_cuda::EncodedMap encoded;
  TensorMapArguments arguments() const;
};
#else
struct alignas(128) TensorMap {
  unsigned char opaque[128];
};
#endif

// Throws where a rule of cuTensorMapEncodeTiled is broken, naming it, or where the driver lacks it.
TensorMap make_tensor_map(const TensorMapArguments& a);

}  // namespace atrousops::cuda
