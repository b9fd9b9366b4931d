// Small kernels, each with a switch that breaks it, to show that what is broken is found.
#include "cuda/arch/cp_async.h"
#include "cuda/arch/mma.h"
#include "cuda/launch.h"
#include "cuda/registration.h"
#include "cuda/shared.h"

namespace atrousops::cuda {
namespace {

constexpr int kThreads = 64;

// Numbers as tests/cuda/test_faults.py calls them.
enum class Fault {
  none,
  no_barrier_after_write,
  no_barrier_before_overwrite,
  tile_one_too_long,
  tile_read_one_too_far,
  no_wait,
  waits_for_too_few,
  wrong_fragment,
  barrier_in_a_branch,
  arena_too_small,
  shuffle_in_a_branch,
};

// Tiles of 64 elements, each turned round.
template <Fault kFault>
__global__ void turn_kernel(const float* in, float* out, int tiles) {
  ATROUSOPS_SHARED(float, tile, kThreads);
  const int me = static_cast<int>(threadIdx.x);
  for (int t = 0; t < tiles; ++t) {
    tile[me] = in[t * kThreads + me];
    if (kFault == Fault::tile_one_too_long && me == 0) tile[kThreads] = 0;
    if (kFault == Fault::barrier_in_a_branch ? me < 32 : kFault != Fault::no_barrier_after_write) __syncthreads();
    out[t * kThreads + me] = tile[kThreads - (kFault == Fault::tile_read_one_too_far ? 0 : 1) - me];
    if (kFault != Fault::no_barrier_before_overwrite) __syncthreads();
  }
}

// Three groups of copies, used while the last is under way.
template <Fault kFault>
__global__ void copy_kernel(const float* in, float* out) {
  SharedArena arena;
  float* stages = arena.take<float>(3 * kThreads);
  const int me = static_cast<int>(threadIdx.x);
  for (int stage = 0; stage < 3; ++stage) {
    arch::cp_async<4>(stages + stage * kThreads + me, in + stage * kThreads + me, 4);
    arch::cp_async_commit();
  }
  if (kFault == Fault::waits_for_too_few) arch::cp_async_wait<2>();
  if (kFault != Fault::no_wait && kFault != Fault::waits_for_too_few) arch::cp_async_wait<1>();
  __syncthreads();
  for (int stage = 0; stage < 2; ++stage) out[stage * kThreads + me] = stages[stage * kThreads + kThreads - 1 - me];
  arch::cp_async_wait<0>();
  __syncthreads();
  out[2 * kThreads + me] = stages[2 * kThreads + kThreads - 1 - me];
}

// c (16 x 8) = a (16 x 8) times the 8 x 8 matrix with ones on its other diagonal: every row turned round.
template <Fault kFault>
__global__ void product_kernel(const float* in, float* out) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  uint32_t a[4];
  for (int i = 0; i < 4; ++i) {
    const int row = kFault == Fault::wrong_fragment ? g + 8 * (i / 2) : g + 8 * (i % 2);
    const int column = kFault == Fault::wrong_fragment ? t + 4 * (i % 2) : t + 4 * (i / 2);
    a[i] = __float_as_uint(in[row * 8 + column]);
  }
  const auto b = [&](int k) { return __float_as_uint(k + g == 7 ? 1.0f : 0.0f); };
  float c[4] = {};
  arch::mma_tf32(c, a, b(t), b(t + 4));
  for (int i = 0; i < 4; ++i) out[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = c[i];
}

// Each lane's neighbour.
template <Fault kFault>
__global__ void shuffle_kernel(const float* in, float* out) {
  const int lane = static_cast<int>(threadIdx.x);
  float v = in[lane];
  if (kFault != Fault::shuffle_in_a_branch || lane < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);
  __syncwarp();
  out[lane] = v;
}

// The fault, if the kernel is one of those with a switch for it.
template <Fault kFault, Fault... kSwitches>
constexpr Fault kIn = ((kFault == kSwitches) || ...) ? kFault : Fault::none;

template <Fault kFault>
void run(const Tensor& in, Tensor& out) {
  using enum Fault;
  constexpr Fault kTurn = kIn<kFault, no_barrier_after_write, no_barrier_before_overwrite, tile_one_too_long,
                              tile_read_one_too_far, barrier_in_a_branch>;
  const float* from = data<float>(in);
  float* to = mutable_data<float>(out);
  const Stream stream = current_stream(in);
  launch<turn_kernel<kTurn>>({1, kThreads}, stream, from, to, 3);
  SharedSize size;
  size.take<float>(3 * kThreads - (kFault == Fault::arena_too_small ? 1 : 0));
  launch<copy_kernel<kIn<kFault, no_wait, waits_for_too_few>>>({1, kThreads, size.bytes()}, stream, from, to + 192);
  launch<product_kernel<kIn<kFault, wrong_fragment>>>({1, 32}, stream, from, to + 384);
  launch<shuffle_kernel<kIn<kFault, shuffle_in_a_branch>>>({1, 32}, stream, from, to + 512);
}

// in: 192 floats; out: 192 turned by tiles, 192 likewise, 128 turned by rows of 8, 32 with neighbours exchanged.
Tensor test_faults(const Tensor& in, int64_t fault) {
  STD_TORCH_CHECK(in.numel() == 192 && in.is_contiguous(), "192 floats in a row");
  Tensor out = empty({544}, in, false);
  switch (static_cast<Fault>(fault)) {
#define ATROUSOPS_CASE(NAME) \
  case Fault::NAME: run<Fault::NAME>(in, out); break;
    ATROUSOPS_CASE(none)
    ATROUSOPS_CASE(no_barrier_after_write)
    ATROUSOPS_CASE(no_barrier_before_overwrite)
    ATROUSOPS_CASE(tile_one_too_long)
    ATROUSOPS_CASE(tile_read_one_too_far)
    ATROUSOPS_CASE(no_wait)
    ATROUSOPS_CASE(waits_for_too_few)
    ATROUSOPS_CASE(wrong_fragment)
    ATROUSOPS_CASE(barrier_in_a_branch)
    ATROUSOPS_CASE(arena_too_small)
    ATROUSOPS_CASE(shuffle_in_a_branch)
#undef ATROUSOPS_CASE
    default: STD_TORCH_CHECK(false, "there is no fault ", fault);
  }
  return out;
}

}  // namespace
}  // namespace atrousops::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(atrousops_host_cuda, m) { m.def("test_faults(Tensor input, int fault) -> Tensor"); }
ATROUSOPS_CUDA_LIBRARY(m) { m.impl("test_faults", TORCH_BOX(&atrousops::cuda::test_faults)); }
