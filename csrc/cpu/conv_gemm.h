#pragma once
#include <optional>

#include "core/problem.h"
#include "stable/tensor.h"

namespace atrousops::cpu {

// The operator, by the faster path.
Tensor conv(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
            const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
            const std::vector<int64_t>& dilation, int64_t groups, bool allow_tf32, int64_t first_kernel);

// Forward or input gradient, by problem.kind: one GEMM per live region, with its live taps concatenated along K.
// src is (N, channels, *) and dense; the result has out_size.
Tensor conv_gemm(const core::Problem& problem, const Tensor& src, const Tensor& weight,
                 const std::optional<Tensor>& bias, const std::vector<int64_t>& out_size, bool channels_last);

// Weight gradient: one GEMM per group of taps that read the same rectangle of positions.
Tensor conv_gemm_weight(const core::Problem& problem, const Tensor& grad, const Tensor& input,
                        const std::vector<int64_t>& out_size);

}  // namespace atrousops::cpu
