// What the operators need of a tensor beyond torch/csrc/stable: memory formats, and ATen operators without a wrapper.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <vector>

namespace atrousops {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.data_ptr());
}
template <class T>
T* mutable_data(Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

inline std::vector<int64_t> sizes_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

// Dense with channels innermost: (N, C, *) stored as (N, *, C). True of no tensor that is also plainly contiguous,
// unless C or the whole of * is 1, where the two orders are the same memory.
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

// The format an operator computes and answers in: channels_last only where the input is that and not contiguous.
inline bool prefers_channels_last(const Tensor& t) { return !t.is_contiguous() && is_channels_last(t); }

// Uninitialised, (N, C, *) of any rank, stored as (N, *, C) if asked.
inline Tensor empty(const std::vector<int64_t>& size, const Tensor& like, bool channels_last,
                    std::optional<ScalarType> dtype = std::nullopt) {
  const ScalarType type = dtype.value_or(like.scalar_type());
  if (!channels_last) return torch::stable::empty(size, type, std::nullopt, like.device());
  std::vector<int64_t> stored = {size[0]}, order = {0, static_cast<int64_t>(size.size()) - 1};
  for (size_t d = 2; d < size.size(); ++d) {
    stored.push_back(size[d]);
    order.push_back(static_cast<int64_t>(d) - 1);
  }
  stored.push_back(size[1]);
  return torch::stable::permute(torch::stable::empty(stored, type, std::nullopt, like.device()), order);
}

// The tensor itself if it is already dense in the wanted order, else a copy that is.
inline Tensor dense(const Tensor& t, bool channels_last) {
  if (channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
  if (!channels_last) return torch::stable::contiguous(t);
  Tensor out = empty(sizes_of(t), t, true);
  torch::stable::copy_(out, t);
  return out;
}

}  // namespace atrousops
