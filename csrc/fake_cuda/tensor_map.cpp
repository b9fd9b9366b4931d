// cuTensorMapEncodeTiled, by the rules of cuda.h. The map has the format of host_cuda/encoded_map.h.
#include "fake_cuda/tensor_map.h"

#include <cuda.h>

#include <cstring>

#include "fake_cuda/runtime.h"
#include "host_cuda/encoded_map.h"

namespace fake_cuda {

static unsigned bytes_of(CUtensorMapDataType t) {
  switch (t) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 8;
    default: return 4;
  }
}

static unsigned swizzle_bytes(CUtensorMapSwizzle s) {
  switch (s) {
    case CU_TENSOR_MAP_SWIZZLE_NONE: return 0;
    case CU_TENSOR_MAP_SWIZZLE_32B: return 32;
    case CU_TENSOR_MAP_SWIZZLE_64B: return 64;
    default: return 128;
  }
}

struct Tiled {
  cuuint32_t rank;
  const cuuint64_t *sizes, *strides;
  const cuuint32_t *box, *element_strides;
  unsigned element;
};

// What is wrong with it, or null.
static const char* problem(const Tiled& t) {
  for (cuuint32_t i = 0; i < t.rank; ++i) {
    if (t.sizes[i] == 0 || t.sizes[i] > cuuint64_t{1} << 32) return "tensor map: a size is not within 1 and 2^32";
    if (t.box[i] == 0 || t.box[i] > 256) return "tensor map: a box is not within 1 and 256";
    if (t.element_strides[i] == 0 || t.element_strides[i] > 8) return "tensor map: element strides go from 1 to 8";
  }
  for (cuuint32_t i = 0; i + 1 < t.rank; ++i)
    if (t.strides[i] % 16 != 0 || t.strides[i] >= cuuint64_t{1} << 40)
      return "tensor map: a stride is no multiple of 16 below 2^40";
  if (t.box[0] * t.element % 16 != 0) return "tensor map: the box's rows are no multiple of 16 bytes";
  return nullptr;
}

static CUresult refuse(CUresult result, const char* why) {
  fail(cudaErrorInvalidValue, why);
  cudaGetLastError();
  return result;
}

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                      const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* element_strides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  Lock lock(mutex());
  if (!has_context()) return refuse(CUDA_ERROR_INVALID_CONTEXT, "tensor map: this thread has no current context");
  if (device_kind(current_device()).major < 9) return refuse(CUDA_ERROR_NOT_SUPPORTED, "tensor map: below sm_90");
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || swizzle > CU_TENSOR_MAP_SWIZZLE_128B)
    return refuse(CUDA_ERROR_NOT_SUPPORTED, "tensor map: an interleaving or swizzle that is not written");
  if (rank == 0 || rank > 5) return refuse(CUDA_ERROR_INVALID_VALUE, "tensor map: rank");
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0)
    return refuse(CUDA_ERROR_INVALID_VALUE, "tensor map: its own address");
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0)
    return refuse(CUDA_ERROR_INVALID_VALUE, "tensor map: the address");
  const Tiled t{rank, sizes, strides, box, element_strides, bytes_of(type)};
  if (const char* wrong = problem(t)) return refuse(CUDA_ERROR_INVALID_VALUE, wrong);
  if (swizzle_bytes(swizzle) && box[0] * t.element > swizzle_bytes(swizzle))
    return refuse(CUDA_ERROR_INVALID_VALUE, "tensor map: the box's rows are longer than the swizzle's span");
  atrousops::host_cuda::EncodedMap e{};
  e.mark = e.kMark;
  e.type = static_cast<uint8_t>(type);
  e.rank = static_cast<uint8_t>(rank);
  e.swizzle = static_cast<uint8_t>(swizzle);
  e.fill = static_cast<uint8_t>(fill);
  e.address = reinterpret_cast<uintptr_t>(address);
  for (cuuint32_t i = 0; i < rank; ++i) {
    e.last[i] = static_cast<uint32_t>(sizes[i] - 1);
    if (i > 0) e.strides[i - 1] = strides[i - 1];
    e.box[i] = static_cast<uint16_t>(box[i]);
    e.element_strides[i] = static_cast<uint8_t>(element_strides[i]);
  }
  std::memset(map, 0, sizeof(*map));
  std::memcpy(map, &e, sizeof(e));
  return CUDA_SUCCESS;
}

}  // namespace fake_cuda
