// implement<"roi_pool", &roi_pool, "input", "boxes">(m) registers an operator's function, in STABLE_TORCH_LIBRARY_IMPL.
// The dispatcher selects a kernel by one of the tensors. A tensor on another device raises an exception here, before
// its address is used on this device. The names are those of the schema's tensors, in order.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "stable/tensor.h"

namespace atrousops {

template <size_t N>
struct Text {
  char text[N];
  // NOLINTNEXTLINE: a literal becomes one.
  constexpr Text(const char (&literal)[N]) { std::copy_n(literal, N, text); }
};

namespace one_device {

// In torch's notation.
inline std::string name(const torch::stable::Device& device) {
  using torch::headeronly::DeviceType;
  std::string text;
  switch (device.type()) {
    case DeviceType::CPU: return "cpu";
    case DeviceType::CUDA: text = "cuda"; break;
    case DeviceType::Meta: text = "meta"; break;
    case DeviceType::MPS: text = "mps"; break;
    case DeviceType::XPU: text = "xpu"; break;
    default: text = "device type " + std::to_string(static_cast<int>(device.type()));
  }
  if (device.has_index()) text.append(":").append(std::to_string(device.index()));
  return text;
}

struct First {
  const char* op;
  const char* argument;
  std::optional<torch::stable::Device> device;
};

inline void check(First& first, const char* argument, const Tensor& t) {
  const torch::stable::Device device = t.device();
  if (!first.device) {
    first.argument = argument;
    first.device = device;
  }
  STD_TORCH_CHECK(device == *first.device, first.op, ": ", argument, " must be on ", name(*first.device), ", as ",
                  first.argument, "; got ", name(device), ". Move it there: ", argument, ".to(", first.argument,
                  ".device).");
}
inline void check(First& first, const char* argument, const std::optional<Tensor>& t) {
  if (t) check(first, argument, *t);
}
inline void check(First& first, const char* argument, const std::vector<Tensor>& list) {
  for (const Tensor& t : list) check(first, argument, t);
}

template <class T>
inline constexpr bool holds_tensors = false;
template <>
inline constexpr bool holds_tensors<Tensor> = true;
template <>
inline constexpr bool holds_tensors<std::optional<Tensor>> = true;
template <>
inline constexpr bool holds_tensors<std::vector<Tensor>> = true;

template <class Function>
struct Checked;
template <class Result, class... Parameters>
struct Checked<Result (*)(Parameters...)> {
  template <Result (*F)(Parameters...), Text Op, Text... Names>
  static Result call(Parameters... parameters) {
    static_assert((0 + ... + holds_tensors<std::remove_cvref_t<Parameters>>) == sizeof...(Names),
                  "a name for each tensor, list of tensors or optional tensor");
    First first{Op.text, nullptr, std::nullopt};
    const char* const names[] = {Names.text...};
    const char* const* next = names;
    const auto look = [&]<class T>(const T& value) {
      if constexpr (holds_tensors<T>) check(first, *next++, value);
    };
    (look(parameters), ...);
    return F(std::forward<Parameters>(parameters)...);
  }
};

}  // namespace one_device

template <Text Op, auto F, Text... Names, class Library>
void implement(Library& m) {
  m.impl(Op.text, TORCH_BOX((&one_device::Checked<decltype(F)>::template call<F, Op, Names...>)));
}

}  // namespace atrousops
