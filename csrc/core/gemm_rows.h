// The number of rows per gathered GEMM on a CPU, for csrc/cpu/conv_gemm.cpp and for the planner.
#pragma once

#include <algorithm>
#include <cstdint>

namespace atrousops::core {

inline constexpr int64_t kGemmRows = 256, kGemmColumns = 512;  // of one result: both scratch tiles stay in the cache

// A 16-bit GEMM takes at least 25 us, so narrow rows with narrow results use more rows per GEMM.
// bytes: of a row and its results.
inline int64_t rows_of_16_bits(int64_t bytes) {
  return std::clamp<int64_t>((int64_t{768} << 10) / std::max<int64_t>(bytes, 1), kGemmRows, 16 * kGemmRows);
}

}  // namespace atrousops::core
