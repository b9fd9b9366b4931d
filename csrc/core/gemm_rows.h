// How many rows the gathered GEMMs on a CPU take at once: csrc/cpu/conv_gemm.cpp cuts by it, and the planner counts.
#pragma once

#include <algorithm>
#include <cstdint>

namespace atrousops::core {

inline constexpr int64_t kGemmRows = 256, kGemmColumns = 512;  // of one result: both scratch tiles stay in the cache

// A 16-bit GEMM takes some 25 us however small it is: more rows share one where they and their results are narrow.
// bytes: of a row and its results.
inline int64_t rows_of_16_bits(int64_t bytes) {
  return std::clamp<int64_t>((int64_t{768} << 10) / std::max<int64_t>(bytes, 1), kGemmRows, 16 * kGemmRows);
}

}  // namespace atrousops::core
