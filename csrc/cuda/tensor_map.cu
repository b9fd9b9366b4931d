#include <algorithm>
#include <string>

#include "cuda/tensor_map.h"

#if !defined(ATROUSOPS_HOST_CUDA)
#include <cuda.h>
#include <cudaTypedefs.h>

#include <cstring>

#include "cuda/launch.h"
#endif

namespace atrousops::cuda {
namespace {

void check_dimension(const TensorMapArguments& a, int i) {
  const std::string where = "tensor map, dimension " + std::to_string(i) + ": ";
  STD_TORCH_CHECK(a.sizes[i] >= 1 && a.sizes[i] <= int64_t{1} << 32, where, "a size of ", a.sizes[i],
                  "; 1 to 2^32 will do");
  STD_TORCH_CHECK(a.box[i] >= 1 && a.box[i] <= kMostOfBox, where, "a box of ", a.box[i], "; 1 to ", kMostOfBox,
                  " will do");
  STD_TORCH_CHECK(a.element_strides[i] >= 1 && a.element_strides[i] <= kMostStep, where, "an element stride of ",
                  a.element_strides[i], "; 1 to ", kMostStep, " will do");
  if (i == 0) return;
  STD_TORCH_CHECK(a.strides[i] > 0 && a.strides[i] % 16 == 0 && a.strides[i] < int64_t{1} << 40, where, "a stride of ",
                  a.strides[i], " bytes; a multiple of 16 below 2^40 will do");
}

void check(const TensorMapArguments& a) {
  STD_TORCH_CHECK(a.rank >= 2 && a.rank <= 5, "tensor map: rank ", a.rank, "; 2 to 5 are supported");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(a.address) % 16 == 0,
                  "tensor map: the tensor's address is not a multiple of 16");
  for (int i = 0; i < a.rank; ++i) check_dimension(a, i);
  const int row = a.box[0] * bytes_of(a.type);
  STD_TORCH_CHECK(row % 16 == 0, "tensor map: the box has ", row, " bytes along dimension 0; a multiple of 16 will do");
  // Shorter rows are allowed; how they are then laid out is not verified.
  STD_TORCH_CHECK(a.swizzle == Swizzle::none || row == swizzle_span(a.swizzle), "tensor map: the box has ", row,
                  " bytes along dimension 0, but this swizzle takes rows of ", swizzle_span(a.swizzle));
}

#if defined(ATROUSOPS_HOST_CUDA)
// CUtensorMapDataType of each TensorMapType.
constexpr uint8_t kTypeCodes[] = {6, 9, 7, 11, 0};
#else
PFN_cuTensorMapEncodeTiled_v12000 find_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status{};
  check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status),
             "cudaGetDriverEntryPointByVersion");
  STD_TORCH_CHECK(status == cudaDriverEntryPointSuccess && found,
                  "the driver has no cuTensorMapEncodeTiled (CUDA 12.0)");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
}

// The driver wants a current context, which a thread that has only named its device, such as autograd's, may lack. This
// gives it the primary one, and is allowed while a stream is captured.
void bind_context() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaSetDevice(device), "cudaSetDevice");
}

CUtensorMapDataType code_of(TensorMapType t) {
  switch (t) {
    case TensorMapType::f16: return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case TensorMapType::bf16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case TensorMapType::tf32: return CU_TENSOR_MAP_DATA_TYPE_TFLOAT32;
    case TensorMapType::u8: return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    default: return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  }
}
#endif

}  // namespace

#if defined(ATROUSOPS_HOST_CUDA)
TensorMap make_tensor_map(const TensorMapArguments& a) {
  check(a);
  TensorMap made{};
  host_cuda::EncodedMap& e = made.encoded;
  e.mark = host_cuda::EncodedMap::kMark;
  e.type = kTypeCodes[static_cast<int>(a.type)];
  e.rank = static_cast<uint8_t>(a.rank);
  e.swizzle = static_cast<uint8_t>(a.swizzle);
  e.address = reinterpret_cast<uintptr_t>(a.address);
  for (int i = 0; i < a.rank; ++i) {
    e.last[i] = static_cast<uint32_t>(a.sizes[i] - 1);
    if (i > 0) e.strides[i - 1] = static_cast<uint64_t>(a.strides[i]);
    e.box[i] = static_cast<uint16_t>(a.box[i]);
    e.element_strides[i] = static_cast<uint8_t>(a.element_strides[i]);
  }
  return made;
}
TensorMapArguments TensorMap::arguments() const {
  TensorMapArguments a{};
  a.type =
      static_cast<TensorMapType>(std::find(std::begin(kTypeCodes), std::end(kTypeCodes), encoded.type) - kTypeCodes);
  a.rank = encoded.rank;
  a.address = reinterpret_cast<const void*>(encoded.address);
  for (int i = 0; i < a.rank; ++i) {
    a.sizes[i] = int64_t{encoded.last[i]} + 1;
    a.strides[i] = i > 0 ? static_cast<int64_t>(encoded.strides[i - 1]) : 0;
    a.box[i] = encoded.box[i];
    a.element_strides[i] = encoded.element_strides[i];
  }
  a.swizzle = static_cast<Swizzle>(encoded.swizzle);
  return a;
}
#else
TensorMap make_tensor_map(const TensorMapArguments& a) {
  check(a);
  bind_context();
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_encoder();
  cuuint64_t sizes[5], strides[5];
  cuuint32_t box[5], element_strides[5];
  for (int i = 0; i < a.rank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(a.sizes[i]);
    strides[i] = static_cast<cuuint64_t>(a.strides[i]);
    box[i] = static_cast<cuuint32_t>(a.box[i]);
    element_strides[i] = static_cast<cuuint32_t>(a.element_strides[i]);
  }
  CUtensorMap map;
  static_assert(sizeof(map) == sizeof(TensorMap) && alignof(CUtensorMap) <= alignof(TensorMap));
  const CUresult result =
      encode(&map, code_of(a.type), static_cast<cuuint32_t>(a.rank), const_cast<void*>(a.address), sizes, strides + 1,
             box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, static_cast<CUtensorMapSwizzle>(a.swizzle),
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  STD_TORCH_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with CUresult ", static_cast<int>(result));
  TensorMap made;
  std::memcpy(&made, &map, sizeof(made));
  return made;
}
#endif

}  // namespace atrousops::cuda
