#pragma once
#include <optional>

#include "core/problem.h"
#include "stable/tensor.h"

namespace atrousops::cpu {

// Groups of few channels (mainly depthwise), without a GEMM. Same contracts as conv_gemm and conv_gemm_weight.
Tensor conv_direct(const core::Problem& problem, const Tensor& src, const Tensor& weight,
                   const std::optional<Tensor>& bias, const std::vector<int64_t>& out_size, bool channels_last);
Tensor conv_direct_weight(const core::Problem& problem, const Tensor& grad, const Tensor& input,
                          const std::vector<int64_t>& out_size);

}  // namespace atrousops::cpu
