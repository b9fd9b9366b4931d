// Every wrapper of the Hopper families once, compiled for sm_90a by tests/compile/test_hopper.py, and never run.
#include "cuda/arch/barrier.h"
#include "cuda/arch/cluster.h"
#include "cuda/arch/mbarrier.h"
#include "cuda/arch/setmaxnreg.h"
#include "cuda/arch/tma.h"
#include "cuda/arch/wgmma.h"

namespace atrousops::cuda {

using namespace arch;

__global__ void mbarrier_kernel(int* out) {
  SharedArena arena;
  Mbarrier* const b = arena.take<Mbarrier>(2);
  mbarrier_init(b, 2);
  mbarrier_fence_init();
  mbarrier_expect(b, 16);
  mbarrier_arrive_expect(b, 16);
  mbarrier_arrive(b + 1);
  mbarrier_arrive_cluster(map_to_rank(b, 1));
  mbarrier_arrive_cluster_cta(map_to_rank(b, 1));
  mbarrier_arrive_expect_cluster(map_to_rank(b, 1), 16);
  *out = mbarrier_try_wait(b, 1);
  mbarrier_wait(b, 0);
  mbarrier_wait_cluster(b + 1, 0);
  mbarrier_invalidate(b);
}

template <int kRank>
__global__ void tma_kernel(const __grid_constant__ TensorMap map) {
  SharedArena arena;
  char* const box = arena.take<char, 1024>(1024);
  Mbarrier* const b = arena.take<Mbarrier>(1);
  int at[kRank];
  for (int i = 0; i < kRank; ++i) at[i] = static_cast<int>(blockIdx.x) - i;
  tma_prefetch(&map);
  tma_load(box, &map, at, b);
  tma_load_multicast(box, &map, at, b, 3);
  fence_proxy_async();
  tma_store(&map, at, box);
  tma_store_commit();
  tma_store_wait_read<1>();
  tma_store_wait<0>();
}
template __global__ void tma_kernel<2>(const __grid_constant__ TensorMap);
template __global__ void tma_kernel<3>(const __grid_constant__ TensorMap);
template __global__ void tma_kernel<4>(const __grid_constant__ TensorMap);
template __global__ void tma_kernel<5>(const __grid_constant__ TensorMap);

template <class T, int kN, Major kA, Major kB>
__global__ void __launch_bounds__(128) wgmma_kernel(wgmma_sum_t<T>* out) {
  SharedArena arena;
  char* const shared = arena.take<char, 1024>(65536);
  const uint64_t a =
      kA == Major::k ? wgmma_k_major(shared, Swizzle::bytes_128) : wgmma_mn_major(shared, Swizzle::bytes_128, 64);
  const uint64_t b = wgmma_k_major(shared + 8192, Swizzle::bytes_128);
  wgmma_sum_t<T> d[kN / 2];
  for (int i = 0; i < kN / 2; ++i) d[i] = out[i];
  wgmma_keep(d);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < 2; ++i) wgmma<T, kN, kA, kB>(d, wgmma_advance(a, 32 * i), wgmma_advance(b, 32 * i), 1);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_keep(d);
  if constexpr (sizeof(T) > 1) {
    const uint32_t words[4] = {threadIdx.x, blockIdx.x, 2, 3};
    wgmma_fence();
    wgmma_from_registers<T, kN, kB>(d, words, b, 1);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_keep(d);
  }
  for (int i = 0; i < kN / 2; ++i) out[threadIdx.x * (kN / 2) + i] = d[i];
}
template __global__ void wgmma_kernel<BFloat16, 32, Major::k, Major::k>(float*);
template __global__ void wgmma_kernel<BFloat16, 64, Major::mn, Major::mn>(float*);
template __global__ void wgmma_kernel<BFloat16, 96, Major::k, Major::mn>(float*);
template __global__ void wgmma_kernel<Half, 128, Major::k, Major::k>(float*);
template __global__ void wgmma_kernel<Half, 192, Major::mn, Major::k>(float*);
template __global__ void wgmma_kernel<float, 256, Major::k, Major::k>(float*);
template __global__ void wgmma_kernel<int8_t, 256, Major::k, Major::k>(int32_t*);
template __global__ void wgmma_kernel<Float8_e4m3fn, 128, Major::k, Major::k>(float*);

__global__ void __launch_bounds__(384, 1) roles_kernel(uint4* out) {
  ATROUSOPS_SHARED(uint4, shared, 384);
  if (threadIdx.x < 128) {
    give_registers<40>();
    named_barrier_arrive<1, 384>();
  } else {
    take_registers<232>();
    named_barrier_sync<1, 384>();
  }
  cluster_arrive();
  cluster_wait();
  if (elect_one()) store_cluster(map_to_rank(shared, (cluster_rank() + 1) % cluster_size()), uint4{1, 2, 3, 4});
  cluster_arrive();
  cluster_wait();
  out[threadIdx.x] = load_cluster(map_to_rank(shared + threadIdx.x, 0));
}

}  // namespace atrousops::cuda
