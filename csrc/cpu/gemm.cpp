#include "cpu/gemm.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

#include <array>

namespace atrousops::cpu {

using torch::stable::Tensor;

static Tensor view(ScalarType dtype, const Matrix& m) {
  const std::array<int64_t, 2> sizes = {m.rows, m.columns}, strides = {m.stride_row, m.stride_column};
  return torch::stable::from_blob(const_cast<void*>(m.data), sizes, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype);
}

void gemm(ScalarType dtype, const Matrix& a, const Matrix& b, const Matrix& result, bool accumulate) {
  const Tensor left = view(dtype, a), right = view(dtype, b), out = view(dtype, result);
  if (accumulate) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), left.get(), right.get(), 1, 1));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), left.get(), right.get()));
  }
}

static bool ask(const char* op) {
  StableIValue stack[1];
  if (torch_call_dispatcher(op, "", stack, TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS) return false;
  return torch::stable::detail::to<bool>(stack[0]);
}

bool has_gemm16(ScalarType dtype) {
  static const bool bfloat16 = ask("mkldnn::_is_mkldnn_bf16_supported");
  static const bool float16 = ask("mkldnn::_is_mkldnn_fp16_supported");
  return dtype == ScalarType::BFloat16 ? bfloat16 : dtype == ScalarType::Half && float16;
}

}  // namespace atrousops::cpu
