// Matrix products through ATen, with its library and instructions for the dtype.
#pragma once
#include "stable/dispatch.h"

namespace atrousops::cpu {

// rows x columns, element (i, j) at data[i * stride_row + j * stride_column].
struct Matrix {
  const void* data;
  int64_t rows, columns, stride_row, stride_column = 1;
};

inline Matrix transposed(const Matrix& m) { return {m.data, m.columns, m.rows, m.stride_column, m.stride_row}; }

// result = a b, or result += a b. The result's rows are contiguous; all three are of `dtype`. Inside a parallel region
// it runs on one thread.
void gemm(ScalarType dtype, const Matrix& a, const Matrix& b, const Matrix& result, bool accumulate);

// Whether this machine multiplies matrices of a 16-bit dtype in hardware, with sums in fp32.
bool has_gemm16(ScalarType dtype);

}  // namespace atrousops::cpu
