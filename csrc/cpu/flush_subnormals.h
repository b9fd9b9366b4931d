#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/dispatch.h"

namespace atrousops::cpu {

struct FlushSubnormalsArgs {
  const void* input;
  void* output;
  ScalarType dtype;
};
ATROUSOPS_DECLARE_KERNEL(flush_subnormals, const FlushSubnormalsArgs& args, int64_t begin, int64_t end)

}  // namespace atrousops::cpu
