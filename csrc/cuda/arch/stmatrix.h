// stmatrix (sm_90): a warp stores four 8x8 matrices of 16-bit elements to shared memory, the way ldmatrix loads them.
//
// Lane 8 j + r gives the 16-byte aligned address of row r of matrix j. Register j of a lane holds elements
// [lane / 4][2 (lane % 4) + {0, 1}] of matrix j, the even one in the low half.
#pragma once

#include <cstdint>

#include "cuda/platform.h"
#include "cuda/shared.h"

namespace atrousops::cuda::arch {

#ifdef ATROUSOPS_HOST_CUDA
namespace host {

struct StMatrix {
  const uint32_t* registers;
  unsigned char* row;
};

inline void stmatrix_x4(void* row, const uint32_t (&registers)[4]) {
  host_cuda::require_full_warp("stmatrix");
  const uint32_t address = shared_address(row);
  if (address % 16) host_cuda::fail("stmatrix: a row is not aligned to 16 bytes");
  StMatrix mine{registers, host_cuda::cluster_bytes(address, 16, "stmatrix")};
  host_cuda::warp_together("stmatrix", ~0u, mine, [](StMatrix* const(&lanes)[32]) {
    for (int lane = 0; lane < 32; ++lane)
      for (int j = 0; j < 4; ++j)
        std::memcpy(lanes[8 * j + lane / 4]->row + 4 * (lane % 4), &lanes[lane]->registers[j], 4);
  });
}

}  // namespace host
#endif

__device__ __forceinline__ void stmatrix_x4(void* row, const uint32_t (&r)[4]) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"stmatrix.x4">();
  host::stmatrix_x4(row, r);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}

}  // namespace atrousops::cuda::arch
