#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "stable/pool.h"

namespace atrousops::cpu {

struct MaxPoolArgs {
  PoolGeometry g;
  const void* input;
  void* values;
  void* marks;
  Marks kind;
  ScalarType dtype;
  bool channels_last;
};

// Bytes of scratch per worker.
inline int64_t max_pool_scratch(const PoolGeometry& g) { return 8 * (g.large[2] + g.stride[2] + 2 * g.small[2]) + 64; }

// Windows of rows (n, c, od, oh), or windows (n, od, oh, ow) of all channels in channels_last.
ATROUSOPS_DECLARE_KERNEL(max_pool, const MaxPoolArgs& args, int64_t begin, int64_t end, void* scratch)

}  // namespace atrousops::cpu
