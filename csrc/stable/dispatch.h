// Converts a run-time dtype to a template parameter; an unknown dtype is an error.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Float8_e4m3fn.h>
#include <torch/headeronly/util/Half.h>

namespace atrousops {

using torch::headeronly::BFloat16;
using torch::headeronly::Float8_e4m3fn;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

// Calls f.template operator()<T>() with the C++ type of a floating dtype.
template <class F>
decltype(auto) dispatch_floating(ScalarType dtype, const char* op, F&& f) {
  switch (dtype) {
    case ScalarType::Double: return f.template operator()<double>();
    case ScalarType::Float: return f.template operator()<float>();
    case ScalarType::BFloat16: return f.template operator()<BFloat16>();
    case ScalarType::Half: return f.template operator()<Half>();
    default:
      STD_TORCH_CHECK(false, op, ": dtype must be float64, float32, bfloat16 or float16; got ScalarType ",
                      static_cast<int>(dtype));
  }
}

}  // namespace atrousops
