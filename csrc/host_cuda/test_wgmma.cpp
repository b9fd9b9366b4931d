// One warpgroup around the wgmma wrappers, with switches that break it, for tests.
#include "cuda/arch/tma.h"
#include "cuda/arch/wgmma.h"
#include "cuda/launch.h"
#include "cuda/registration.h"
#include "cuda/shared.h"

namespace atrousops::cuda {
namespace {

using Ints = std::vector<int64_t>;
using arch::Major;

// Numbers as tests/cuda/test_wgmma.py has them.
enum class Fault {
  none,
  no_fence,
  no_proxy_fence,
  no_wait,
  waits_for_too_few,
  overwritten_early,
  sum_written_early,
  three_warps,
  warps_differ,
  never_waits,
  fence_once,
  no_line_start,
};

// An operand's bytes as they shall lie in shared memory, the fields of its descriptor, and what each step adds.
struct Side {
  const unsigned char* bytes;
  int count, leading, stride;
  Swizzle swizzle;
  int step, block, per_block;
  __device__ int at(int i) const { return i / per_block * block + i % per_block * step; }
};

__device__ void fill(unsigned char* shared, const Side& side) {
  for (int i = static_cast<int>(threadIdx.x); i < side.count; i += static_cast<int>(blockDim.x))
    shared[i] = side.bytes[i];
}

// The words of A in registers for one step: each thread's, one after the other.
__device__ void read_registers(uint32_t (&r)[4], const unsigned char* bytes, int step) {
  for (int i = 0; i < 4; ++i)
    memcpy(&r[i], bytes + ((step * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * 4 + i) * 4, 4);
}

// Sums begin at `start` (no sum at all if it is 0) and go out as they lie in registers. Two groups of products, of
// which the second is the last step.
template <class T, int kN, Major kA, Major kB, bool kRegisters>
__global__ void wgmma_kernel(Side a, Side b, int steps, float start, Fault fault, void* words) {
  SharedArena arena;
  auto* const shared_a = arena.take<unsigned char, 1024>(kRegisters ? 16 : a.count);
  auto* const shared_b = arena.take<unsigned char, 1024>(b.count);
  if (!kRegisters) fill(shared_a, a);
  fill(shared_b, b);
  if (fault != Fault::no_proxy_fence) arch::fence_proxy_async();
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const bool odd = fault == Fault::warps_differ && warp == 2;
  const uint64_t of_a = arch::wgmma_operand(shared_a, a.swizzle, a.leading, a.stride);
  const uint64_t of_b = arch::wgmma_operand(shared_b + (fault == Fault::no_line_start ? 128 : 0), b.swizzle, b.leading,
                                            odd ? b.stride + 16 : b.stride);
  if (fault == Fault::three_warps && warp == 3) return;
  using Sum = arch::wgmma_sum_t<T>;
  Sum d[kN / 2];
  for (Sum& v : d) v = static_cast<Sum>(start);
  if (fault == Fault::fence_once) {
    arch::wgmma_fence();
    arch::wgmma_commit();
  }
  arch::wgmma_keep(d);
  if (fault != Fault::no_fence) arch::wgmma_fence();
  for (int i = 0; i < steps; ++i) {
    const int add = start != 0 || i > 0;
    if (i == steps - 1) {
      arch::wgmma_commit();
      if (fault == Fault::fence_once) arch::wgmma_wait<0>();
    }
    if constexpr (kRegisters) {
      uint32_t r[4];
      read_registers(r, a.bytes, i);
      arch::wgmma_from_registers<T, kN, kB>(d, r, arch::wgmma_advance(of_b, b.at(i)), add);
    } else {
      arch::wgmma<T, kN, kA, kB>(d, arch::wgmma_advance(of_a, a.at(i)), arch::wgmma_advance(of_b, b.at(i)), add);
    }
  }
  arch::wgmma_commit();
  if (fault == Fault::overwritten_early) shared_b[threadIdx.x] ^= 1;
  if (fault == Fault::sum_written_early) d[3] = 0;
  if (fault == Fault::waits_for_too_few) arch::wgmma_wait<1>();
  if (fault != Fault::no_wait && fault != Fault::waits_for_too_few && fault != Fault::never_waits)
    arch::wgmma_wait<0>();
  arch::wgmma_keep(d);
  auto* const out = static_cast<Sum*>(words);
  for (int i = 0; i < kN / 2; ++i) out[static_cast<int>(threadIdx.x) * (kN / 2) + i] = d[i];
  if (fault == Fault::no_wait || fault == Fault::waits_for_too_few) arch::wgmma_wait<0>();
}

Side side_of(const Tensor& t, const Ints& fields) {
  const auto field = [&](size_t i) { return static_cast<int>(fields[i]); };
  return {data<unsigned char>(t),
          static_cast<int>(t.numel()),
          field(0),
          field(1),
          static_cast<Swizzle>(field(2)),
          field(3),
          field(4),
          field(5)};
}

struct Run {
  const Tensor &a, &b;
  Side of_a, of_b;
  int64_t n;
  bool a_across, b_across, registers;
  int64_t steps;
  double start;
  int64_t fault;
  Tensor& out;
};

template <class T, int kN, Major kA, Major kB, bool kRegisters = false>
bool run_if(const Run& r) {
  if (r.n != kN || r.a_across != (kA == Major::mn) || r.b_across != (kB == Major::mn) || r.registers != kRegisters)
    return false;
  launch<wgmma_kernel<T, kN, kA, kB, kRegisters>>(
      {1, 128, (kRegisters ? 1024 : r.a.numel() + 1023) / 1024 * 1024 + r.b.numel()}, current_stream(r.a), r.of_a,
      r.of_b, static_cast<int>(r.steps), static_cast<float>(r.start), static_cast<Fault>(r.fault),
      r.out.mutable_data_ptr());
  return true;
}

constexpr Major k = Major::k, mn = Major::mn;

bool run_bf16(const Run& r) {
  using T = BFloat16;
  return run_if<T, 32, k, k>(r) || run_if<T, 64, k, k>(r) || run_if<T, 96, k, k>(r) || run_if<T, 128, k, k>(r) ||
         run_if<T, 192, k, k>(r) || run_if<T, 256, k, k>(r) || run_if<T, 64, k, mn>(r) || run_if<T, 128, k, mn>(r) ||
         run_if<T, 256, k, mn>(r) || run_if<T, 64, mn, k>(r) || run_if<T, 64, mn, mn>(r) || run_if<T, 128, mn, mn>(r) ||
         run_if<T, 64, k, k, true>(r) || run_if<T, 64, k, mn, true>(r) || run_if<T, 256, k, k, true>(r);
}
bool run_f16(const Run& r) {
  using T = Half;
  return run_if<T, 64, k, k>(r) || run_if<T, 128, mn, mn>(r) || run_if<T, 64, k, mn, true>(r);
}
bool run_tf32(const Run& r) {
  return run_if<float, 64, k, k>(r) || run_if<float, 256, k, k>(r) || run_if<float, 64, k, k, true>(r);
}
bool run_s8(const Run& r) {
  return run_if<int8_t, 64, k, k>(r) || run_if<int8_t, 128, k, k>(r) || run_if<int8_t, 256, k, k>(r);
}
bool run_e4m3(const Run& r) { return run_if<Float8_e4m3fn, 64, k, k>(r) || run_if<Float8_e4m3fn, 128, k, k>(r); }

void test_wgmma(const Tensor& a, const Ints& fields_a, const Tensor& b, const Ints& fields_b, int64_t type, int64_t n,
                bool a_across, bool b_across, bool registers, int64_t steps, double start, int64_t fault, Tensor out) {
  const Run r{a,     b,  side_of(a, fields_a), side_of(b, fields_b), n, a_across, b_across, registers, steps, start,
              fault, out};
  bool (*const types[])(const Run&) = {run_bf16, run_f16, run_tf32, run_s8, run_e4m3};
  STD_TORCH_CHECK(types[type](r), "this combination is not instantiated");
}

// Of a tile that begins at shared address 1024.
__global__ void descriptor_kernel(Side side, int advance, int64_t* out) {
  SharedArena arena;
  const auto* tile = arena.take<unsigned char, 1024>(1024);
  out[0] = static_cast<int64_t>(
      arch::wgmma_advance(arch::wgmma_operand(tile, side.swizzle, side.leading, side.stride), advance));
  out[1] = static_cast<int64_t>(arch::wgmma_k_major(tile, side.swizzle));
  out[2] = static_cast<int64_t>(arch::wgmma_mn_major(tile, side.swizzle, side.count));
}

void test_wgmma_descriptor(int64_t swizzle, int64_t leading, int64_t stride, int64_t advance, int64_t depth,
                           Tensor out) {
  const Side side{nullptr,
                  static_cast<int>(depth),
                  static_cast<int>(leading),
                  static_cast<int>(stride),
                  static_cast<Swizzle>(swizzle),
                  0,
                  0,
                  1};
  launch<descriptor_kernel>({1, 1, 1024}, current_stream(out), side, static_cast<int>(advance),
                            mutable_data<int64_t>(out));
}

}  // namespace
}  // namespace atrousops::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(atrousops_host_cuda, m) {
  // clang-format off
  m.def("test_wgmma(Tensor a, int[] fields_a, Tensor b, int[] fields_b, int type, int n, bool a_across, bool b_across, bool registers, int steps, float start, int fault, Tensor(a!) out) -> ()");
  m.def("test_wgmma_descriptor(int swizzle, int leading, int stride, int advance, int depth, Tensor(a!) out) -> ()");
  // clang-format on
}
ATROUSOPS_CUDA_LIBRARY(m) {
  m.impl("test_wgmma", TORCH_BOX(&atrousops::cuda::test_wgmma));
  m.impl("test_wgmma_descriptor", TORCH_BOX(&atrousops::cuda::test_wgmma_descriptor));
}
