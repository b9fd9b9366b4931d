#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "stable/dispatch.h"

namespace atrousops::cpu {

struct FlushSubnormalsArgs {
  const void* input;
  void* output;
  ScalarType dtype;
};
ATROUSOPS_DECLARE_KERNEL(flush_subnormals, const FlushSubnormalsArgs& args, int64_t begin, int64_t end)

// Whether there is one among elements [begin, end); looks at one block of core::kSubnormalBlock in `step`.
ATROUSOPS_DECLARE_KERNEL(has_subnormals, const FlushSubnormalsArgs& args, int64_t begin, int64_t end, int64_t step,
                         bool* found)

}  // namespace atrousops::cpu
