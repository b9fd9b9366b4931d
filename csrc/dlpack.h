// DLPack's exchange API, version 1.3 (https://github.com/dmlc/dlpack): a tensor's shape without a Python object made.
// Of its structures this is what is read here; their order in memory is fixed by that standard.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

namespace atrousops::dlpack {

inline constexpr int32_t kCpu = 1;
// DLDataType: code in the lowest byte, bits in the next, lanes above.
inline constexpr uint32_t kFloat64 = 0x14002, kFloat32 = 0x12002, kFloat16 = 0x11002, kBFloat16 = 0x11004;

// DLTensor
struct Tensor {
  void* data;
  int32_t device_type, device;
  int32_t rank;
  uint32_t dtype;
  int64_t *size, *stride;
  uint64_t offset;
};
static_assert(sizeof(Tensor) == 48);

// DLPackExchangeAPI
struct ExchangeApi {
  uint32_t major, minor;
  const ExchangeApi* older;
  void *allocator, *from_object, *to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // -1 with a Python error set
};

// Of a class of tensors, or null.
inline const ExchangeApi* exchange_api(const pybind11::object& type) {
  const auto capsule = pybind11::getattr(type, "__dlpack_c_exchange_api__", pybind11::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  auto* api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (api != nullptr && api->major > 1) api = api->older;
  return api != nullptr && api->major == 1 && api->tensor_from_object != nullptr ? api : nullptr;
}

}  // namespace atrousops::dlpack
