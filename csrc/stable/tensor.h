// Tensor functions missing in torch/csrc/stable: memory formats, and ATen operators without a wrapper.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <optional>
#include <sstream>
#include <vector>

#include "core/checked.h"

namespace atrousops {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* mutable_data(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// For structures that describe both inputs and outputs. A mutable pointer would copy a copy-on-write input; outputs are
// new and never copy-on-write.
inline char* memory_of(const Tensor& t) { return const_cast<char*>(static_cast<const char*>(t.const_data_ptr())); }

// For values that are only used by a kernel.
template <class... Text>
[[noreturn]] void bad_value(const Text&... text) {
  std::ostringstream all;
  (all << ... << text);
  throw core::ArgumentError(all.str());
}

inline std::vector<int64_t> sizes_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

// Dense with channels innermost: (N, C, *) stored as (N, *, C). False for contiguous tensors, unless C or the product
// of * is 1, where both orders are the same.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() < 3) return false;
  int64_t expected = t.size(1);
  if (t.size(1) != 1 && t.stride(1) != 1) return false;
  for (int64_t d = t.dim() - 1; d >= 2; --d) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return t.size(0) == 1 || t.stride(0) == expected;
}

// The format of an operator's computation and result: channels_last only if the input is in it and not contiguous.
inline bool prefers_channels_last(const Tensor& t) { return !t.is_contiguous() && is_channels_last(t); }

// The same for maps (N, C, *): results for sequences (N, C, L) are contiguous, as in PyTorch.
inline bool answers_channels_last(const Tensor& t) { return t.dim() > 3 && prefers_channels_last(t); }

// Uninitialised, (N, C, *) of any rank, stored as (N, *, C) if asked.
inline Tensor empty(const std::vector<int64_t>& size, const Tensor& like, bool channels_last,
                    std::optional<ScalarType> dtype = std::nullopt) {
  const ScalarType type = dtype.value_or(like.scalar_type());
  if (!channels_last) return torch::stable::empty(size, type, std::nullopt, like.device());
  std::vector<int64_t> strides(size.size(), 1);
  int64_t step = std::max<int64_t>(size[1], 1);
  for (size_t d = size.size() - 1; d > 1; --d) {
    strides[d] = step;
    step *= std::max<int64_t>(size[d], 1);
  }
  strides[0] = step;
  // Not a permuted tensor: an operator must not return a view, or in-place operations on its result would fail.
  const torch::headeronly::IntHeaderOnlyArrayRef sizes(size), steps(strides);
  std::array<StableIValue, 6> stack{torch::stable::detail::from(sizes),
                                    torch::stable::detail::from(steps),
                                    torch::stable::detail::from(std::optional(type)),
                                    torch::stable::detail::from(std::optional<torch::headeronly::Layout>()),
                                    torch::stable::detail::from(std::optional(like.device())),
                                    torch::stable::detail::from(std::optional<bool>())};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_strided", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The tensor itself if it is already dense in the wanted order, else a copy that is.
inline Tensor dense(const Tensor& t, bool channels_last) {
  if (channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
  if (!channels_last) return torch::stable::contiguous(t);
  Tensor out = empty(sizes_of(t), t, true);
  torch::stable::copy_(out, t);
  return out;
}

inline void relu_in_place(Tensor& t) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(t)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::relu_", "", stack.data(), TORCH_ABI_VERSION));
  t = torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace atrousops
