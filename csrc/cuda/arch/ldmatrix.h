// ldmatrix (sm_75): a warp loads four 8x8 matrices of 16-bit elements from shared memory, spread over its lanes.
//
// Lane 8 j + r gives the 16-byte aligned address of row r of matrix j. Afterwards register j of a lane holds elements
// [lane / 4][2 (lane % 4) + {0, 1}] of matrix j, the even one in the low half; transposed: [2 (lane % 4) + {0, 1}]
// [lane / 4]. Plain loads also serve 32-bit elements: the register is then word [lane / 4][lane % 4].
#pragma once

#include <cstdint>

#include "cuda/platform.h"

namespace atrousops::cuda::arch {

#ifdef ATROUSOPS_HOST_CUDA
namespace host {

struct LdMatrix {
  uint32_t* registers;
  const char* row;
};

inline void ldmatrix_x4(uint32_t (&registers)[4], const void* row, bool transposed) {
  host_cuda::require_full_warp("ldmatrix");
  if (host_cuda::shared_address(row) % 16) host_cuda::fail("ldmatrix: a row is not aligned to 16 bytes");
  LdMatrix mine{registers, static_cast<const char*>(row)};
  host_cuda::warp_together("ldmatrix", ~0u, mine, [transposed](LdMatrix* const(&lanes)[32]) {
    for (int lane = 0; lane < 32; ++lane)
      for (int j = 0; j < 4; ++j) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
          const int even = 2 * (lane % 4) + i;
          const int row = transposed ? even : lane / 4, column = transposed ? lane / 4 : even;
          std::memcpy(&pair[i], lanes[8 * j + row]->row + 2 * column, 2);
        }
        lanes[lane]->registers[j] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
      }
  });
}

}  // namespace host
#endif

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"ldmatrix.x4">();
  host::ldmatrix_x4(r, row, false);
#else
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"ldmatrix.x4.trans">();
  host::ldmatrix_x4(r, row, true);
#else
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
#endif
}

}  // namespace atrousops::cuda::arch
