#pragma once

#include "stable/pool_tensor.h"

namespace atrousops::cuda {

// What an element of the large map becomes that several windows point at.
enum class Meeting { last, sum };

// Large map from small: each element goes where its mark says, zero elsewhere; marks that say nowhere are left out.
Tensor place_in_large(const char* op, const Tensor& small, const Tensor& marks, const std::vector<int64_t>& large_size,
                      const PoolArguments& args, Meeting meeting);

}  // namespace atrousops::cuda
