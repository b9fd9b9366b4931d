// Clusters, multicast, roles of warpgroups and their barriers, with switches that break them, for tests.
#include "cuda/arch/barrier.h"
#include "cuda/arch/cluster.h"
#include "cuda/arch/setmaxnreg.h"
#include "cuda/arch/store_async.h"
#include "cuda/arch/tma.h"
#include "cuda/launch.h"
#include "cuda/registration.h"
#include "cuda/shared.h"

namespace atrousops::cuda {
namespace {

// Numbers as tests/cuda/test_cluster.py has them.
enum class ExchangeFault {
  none,
  no_sync_at_begin,
  no_sync_before_read,
  ends_early,
  rank_too_high,
  waits_without_arrival
};

// Each thread puts 16 bytes into the memory of the block that follows in the cluster, and reads what the block before
// has got. One warp a block.
__global__ void exchange_kernel(const uint4* in, uint4* out, ExchangeFault fault) {
  SharedArena arena;
  auto* const mine = arena.take<uint4>(32);
  const unsigned rank = arch::cluster_rank(), size = arch::cluster_size();
  const unsigned next = (rank + 1) % size, before = (rank + size - 1) % size;
  if (fault == ExchangeFault::waits_without_arrival) arch::cluster_wait();
  if (fault != ExchangeFault::no_sync_at_begin) {
    arch::cluster_arrive();
    arch::cluster_wait();
  }
  const unsigned to = fault == ExchangeFault::rank_too_high ? size : next;
  arch::store_cluster(arch::map_to_rank(mine + threadIdx.x, to), in[blockIdx.x * 32 + threadIdx.x]);
  arch::cluster_arrive();
  if (fault != ExchangeFault::no_sync_before_read) arch::cluster_wait();
  // The other end of the warp's: what another thread has stored.
  const uint4 v = arch::load_cluster(arch::map_to_rank(mine + (31 - threadIdx.x), before));
  if (fault == ExchangeFault::no_sync_before_read) arch::cluster_wait();
  out[blockIdx.x * 32 + threadIdx.x] = v;
  if (fault == ExchangeFault::ends_early && rank == 0) return;
  if (fault == ExchangeFault::ends_early) {
    __syncwarp();
    for (int i = 0; i < 2; ++i) arch::cluster_arrive(), arch::cluster_wait();
    out[threadIdx.x] = arch::load_cluster(arch::map_to_rank(mine, 0));
  }
  arch::cluster_arrive();
  arch::cluster_wait();
}

enum class PushFault { none, no_wait, no_fence, fewer_bytes, own_barrier, crooked };

// The same exchange by stores that count on the reader's barrier, twice. One warp a block.
__global__ void push_kernel(const uint4* in, uint4* out, PushFault fault) {
  SharedArena arena;
  auto* const mine = arena.take<uint4>(2 * 32);
  auto* const full = arena.take<arch::Mbarrier>(1);
  const unsigned rank = arch::cluster_rank(), size = arch::cluster_size(), next = (rank + 1) % size;
  if (threadIdx.x == 0) {
    arch::mbarrier_init(full, 1);
    if (fault != PushFault::no_fence) arch::mbarrier_fence_init();
  }
  arch::cluster_arrive();
  arch::cluster_wait();
  const uint4 v = in[blockIdx.x * 32 + threadIdx.x];
  for (unsigned round = 0; round < 2; ++round) {
    if (threadIdx.x == 0) arch::mbarrier_arrive_expect(full, fault == PushFault::fewer_bytes ? 16 * 16 : 32 * 16);
    __syncwarp();
    const uint32_t to = arch::map_to_rank(mine + 32 * round + threadIdx.x, next);
    const uint32_t barrier = arch::map_to_rank(full, fault == PushFault::own_barrier ? rank : next);
    arch::store_async(to + (fault == PushFault::crooked ? 8 : 0), v, barrier);
    if (fault != PushFault::no_wait) arch::mbarrier_wait_cluster(full, round);
    // The other end of the warp's: what another thread has stored.
    out[blockIdx.x * 32 + threadIdx.x] = mine[32 * round + 31 - threadIdx.x];
    arch::cluster_arrive();
    arch::cluster_wait();
  }
}

enum class MulticastFault { none, own_bytes_only, no_fence, overwrites_peer, no_drain };

// Two blocks share `rounds` tiles of 16 x 64: each loads 8 rows of every tile for both. One warp a block, one stage;
// the stage is free when both blocks have read it.
__global__ void multicast_kernel(const __grid_constant__ TensorMap map, int rounds, uint16_t* out,
                                 MulticastFault fault) {
  constexpr int kHalf = 8 * 64;
  SharedArena arena;
  auto* const tile = arena.take<uint16_t, 1024>(2 * kHalf);
  auto* const barriers = arena.take<arch::Mbarrier>(2);
  arch::Mbarrier *const full = barriers, *const empty = barriers + 1;
  const unsigned rank = arch::cluster_rank();
  const bool leader = arch::elect_one();
  if (leader) {
    arch::mbarrier_init(full, 1);
    arch::mbarrier_init(empty, 2);
    if (fault != MulticastFault::no_fence) arch::mbarrier_fence_init();
  }
  arch::cluster_arrive();
  arch::cluster_wait();
  for (int i = 0; i < rounds; ++i) {
    const auto parity = static_cast<unsigned>(i & 1);
    if (leader) {
      if (fault != MulticastFault::overwrites_peer) arch::mbarrier_wait_cluster(empty, parity ^ 1);
      arch::mbarrier_arrive_expect(full, (fault == MulticastFault::own_bytes_only ? 1 : 2) * 2 * kHalf);
      const int at[2] = {0, 16 * i + 8 * static_cast<int>(rank)};
      arch::tma_load_multicast(tile + rank * kHalf, &map, at, full, 3);
    }
    __syncwarp();
    arch::mbarrier_wait(full, parity);
    for (int e = static_cast<int>(threadIdx.x); e < 2 * kHalf; e += 32)
      out[(blockIdx.x * rounds + i) * 2 * kHalf + e] = tile[e];
    __syncwarp();
    if (leader)
      for (unsigned r = 0; r < 2; ++r) arch::mbarrier_arrive_cluster(arch::map_to_rank(empty, r));
  }
  // Nobody ends before the other's last arrival.
  if (leader && fault != MulticastFault::no_drain) arch::mbarrier_wait_cluster(empty, (rounds - 1) & 1);
  if (leader && rank == 0) {
    // As a peer that counts bytes for another block would.
    arch::mbarrier_invalidate(full);
    arch::mbarrier_init(full, 1);
  }
  __syncwarp();
  if (fault == MulticastFault::no_drain) return;
  arch::cluster_arrive();
  arch::cluster_wait();
  if (leader && rank == 0) arch::mbarrier_fence_init();
  arch::cluster_arrive();
  arch::cluster_wait();
  if (leader && rank == 1) arch::mbarrier_arrive_expect_cluster(arch::map_to_rank(full, 0), 0);
  if (leader && rank == 0) arch::mbarrier_wait_cluster(full, 0);
  __syncwarp();
  arch::cluster_arrive();
  arch::cluster_wait();
}

enum class RolesFault { none, too_many_registers, warps_differ, other_count, no_barrier };

// A warpgroup gives registers to two others, which exchange their numbers over named barriers; the first announces that
// its own are there, and does not wait.
template <RolesFault kFault>
__global__ void __launch_bounds__(384, 1) roles_kernel(const float* in, float* out) {
  ATROUSOPS_SHARED(float, shared, 384);
  const int me = static_cast<int>(threadIdx.x), group = me / 128;
  if (group == 0) {
    arch::give_registers<40>();
    shared[me] = in[me];
    arch::named_barrier_arrive<1, 384>();
    return;
  }
  if (kFault == RolesFault::warps_differ && me / 32 == 5) {
    arch::take_registers<224>();
  } else {
    arch::take_registers<kFault == RolesFault::too_many_registers ? 240 : 232>();
  }
  shared[me] = in[me];
  if (kFault != RolesFault::no_barrier) arch::named_barrier_sync<1, 384>();
  const float given = shared[me % 128];
  if (kFault == RolesFault::other_count && group == 2) {
    arch::named_barrier_sync<2, 128>();
  } else {
    arch::named_barrier_sync<2, 256>();
  }
  out[me - 128] = shared[128 + (me - 128 + 128) % 256] + given;
}

void test_cluster_exchange(const Tensor& in, Tensor out, int64_t size, int64_t fault) {
  Launch l{static_cast<unsigned>(in.numel() / 128), 32, 512};
  l.cluster = static_cast<unsigned>(size);
  launch<exchange_kernel>(l, current_stream(in), static_cast<const uint4*>(in.const_data_ptr()),
                          static_cast<uint4*>(out.mutable_data_ptr()), static_cast<ExchangeFault>(fault));
}

void test_cluster_push(const Tensor& in, Tensor out, int64_t size, int64_t fault) {
  Launch l{static_cast<unsigned>(in.numel() / (32 * 4)), 32, 2 * 32 * 16 + 16};
  l.cluster = static_cast<unsigned>(size);
  launch<push_kernel>(l, {}, static_cast<const uint4*>(in.const_data_ptr()),
                      static_cast<uint4*>(out.mutable_data_ptr()), static_cast<PushFault>(fault));
}

void test_cluster_multicast(const Tensor& in, Tensor out, int64_t fault) {
  const TensorMapArguments a{TensorMapType::bf16, 2, in.const_data_ptr(), {64, in.size(0)}, {0, 128}, {64, 8}, {1, 1},
                             Swizzle::none};
  Launch l{2, 32, 2048 + 16};
  l.cluster = 2;
  launch<multicast_kernel>(l, current_stream(in), make_tensor_map(a), static_cast<int>(in.size(0) / 16),
                           static_cast<uint16_t*>(out.mutable_data_ptr()), static_cast<MulticastFault>(fault));
}

void test_roles(const Tensor& in, Tensor out, int64_t fault) {
  using enum RolesFault;
  const auto go = [&]<RolesFault kFault>() {
    launch<roles_kernel<kFault>>({1, 384}, current_stream(in), data<float>(in), mutable_data<float>(out));
  };
  switch (static_cast<RolesFault>(fault)) {
    case none: return go.template operator()<none>();
    case too_many_registers: return go.template operator()<too_many_registers>();
    case warps_differ: return go.template operator()<warps_differ>();
    case other_count: return go.template operator()<other_count>();
    case no_barrier: return go.template operator()<no_barrier>();
  }
}

}  // namespace
}  // namespace atrousops::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(atrousops_host_cuda, m) {
  m.def("test_cluster_exchange(Tensor input, Tensor(a!) output, int size, int fault) -> ()");
  m.def("test_cluster_push(Tensor input, Tensor(a!) output, int size, int fault) -> ()");
  m.def("test_cluster_multicast(Tensor input, Tensor(a!) output, int fault) -> ()");
  m.def("test_roles(Tensor input, Tensor(a!) output, int fault) -> ()");
}
ATROUSOPS_CUDA_LIBRARY(m) {
  m.impl("test_cluster_exchange", TORCH_BOX(&atrousops::cuda::test_cluster_exchange));
  m.impl("test_cluster_push", TORCH_BOX(&atrousops::cuda::test_cluster_push));
  m.impl("test_cluster_multicast", TORCH_BOX(&atrousops::cuda::test_cluster_multicast));
  m.impl("test_roles", TORCH_BOX(&atrousops::cuda::test_roles));
}
