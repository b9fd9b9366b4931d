// One warp around each instruction wrapper, for tests.
#include "cuda/arch/cp_async.h"
#include "cuda/arch/ldmatrix.h"
#include "cuda/arch/mma.h"
#include "cuda/arch/pair.h"
#include "cuda/arch/stmatrix.h"
#include "cuda/launch.h"
#include "cuda/mma_tile.cuh"
#include "cuda/registration.h"
#include "cuda/shared.h"

namespace atrousops::cuda {
namespace {

// c (16 x 8) += a b through the fragments that SharedOperand loads; a is (16, k), b (k, 16), or their transposes in
// memory where `kAlong` is false.
template <class Math, bool kAlong>
__global__ void product_kernel(const typename Math::Element* a, const typename Math::Element* b,
                               typename Math::Sum* c) {
  using T = typename Math::Element;
  constexpr int kDepth = 64 / sizeof(T);
  using A = SharedOperand<T, 32, kDepth, kAlong>;
  SharedArena arena;
  char* shared_a = arena.take<char, 128>(A::kBytes);
  char* shared_b = arena.take<char, 128>(A::kBytes);
  for (int i = threadIdx.x; i < A::kLines * A::kChunks; i += 32) {
    const int line = i / A::kChunks, chunk = i % A::kChunks;
    arch::cp_async<16>(shared_a + A::offset(line, chunk), a + i * kChunkOf<T>, 16);
    arch::cp_async<16>(shared_b + A::offset(line, chunk), b + i * kChunkOf<T>, 16);
  }
  arch::cp_async_commit();
  arch::cp_async_wait<0>();
  __syncwarp();
  WarpSums<Math, MmaTile<32, 32, 32, 32, 1, 1>> sums;
  sums.template add<A, A>(shared_a, shared_b);
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int e = 0; e < 4; ++e)
        c[(16 * i + lane_id() / 4 + 8 * (e / 2)) * 32 + 8 * j + lane_id() % 4 * 2 + e % 2] = sums.c[i][j][e];
}

template <bool kTransposed>
__global__ void ldmatrix_kernel(const int16_t* from, int32_t* to) {
  ATROUSOPS_SHARED(int16_t, shared, 256);
  for (int i = threadIdx.x; i < 256; i += 32) shared[i] = from[i];
  __syncwarp();
  uint32_t r[4];
  if constexpr (kTransposed) {
    arch::ldmatrix_x4_trans(r, shared + 8 * threadIdx.x);
  } else {
    arch::ldmatrix_x4(r, shared + 8 * threadIdx.x);
  }
  for (int j = 0; j < 4; ++j) to[4 * threadIdx.x + j] = static_cast<int32_t>(r[j]);
}

__global__ void stmatrix_kernel(const int32_t* from, int16_t* to) {
  ATROUSOPS_SHARED(int16_t, shared, 256);
  uint32_t r[4];
  for (int j = 0; j < 4; ++j) r[j] = static_cast<uint32_t>(from[4 * threadIdx.x + j]);
  arch::stmatrix_x4(shared + 8 * threadIdx.x, r);
  __syncwarp();
  for (int i = threadIdx.x; i < 256; i += 32) to[i] = shared[i];
}

// Of each two numbers the pair, and that of their maxima with +0; and what the pair holds.
template <class T>
__global__ void pair_kernel(const float* from, int32_t* pairs, float* values) {
  const int i = static_cast<int>(threadIdx.x);
  const uint32_t pair = arch::pair_of<T>(from[2 * i], from[2 * i + 1]);
  pairs[2 * i] = static_cast<int32_t>(pair);
  pairs[2 * i + 1] = static_cast<int32_t>(arch::pair_of_relu<T>(from[2 * i], from[2 * i + 1]));
  values[2 * i] = arch::low_of<T>(pair);
  values[2 * i + 1] = arch::high_of<T>(pair);
}

// One thread: copies of kBytes in `groups` groups; `seen` after waiting for all but `pending`.
template <int kBytes, int kPending>
__global__ void cp_async_kernel(const char* from, char* seen, int groups, int valid) {
  ATROUSOPS_SHARED(char, shared, 64);
  for (int i = 0; i < groups; ++i) {
    arch::cp_async<kBytes>(shared + i * kBytes, from + i * kBytes, valid);
    arch::cp_async_commit();
  }
  arch::cp_async_wait<kPending>();
  for (int i = 0; i < groups * kBytes; ++i) seen[i] = shared[i];
}

template <class Math, bool kAlong>
void run_product(const Tensor& a, const Tensor& b, Tensor& c) {
  using T = typename Math::Element;
  launch<product_kernel<Math, kAlong>>(Launch{1, 32, 8192}, current_stream(a), data<T>(a), data<T>(b),
                                       mutable_data<typename Math::Sum>(c));
}
template <class Math>
void run_product(const Tensor& a, const Tensor& b, Tensor& c, bool along) {
  along ? run_product<Math, true>(a, b, c) : run_product<Math, false>(a, b, c);
}

}  // namespace

// c is int32 for int8; both 8-bit types lie along alone.
void test_product(const Tensor& a, const Tensor& b, Tensor c, bool along, bool split) {
  switch (a.scalar_type()) {
    case ScalarType::BFloat16: return run_product<Mma16<BFloat16>>(a, b, c, along);
    case ScalarType::Half: return run_product<Mma16<Half>>(a, b, c, along);
    case ScalarType::Char: return run_product<MmaS8, true>(a, b, c);
    case ScalarType::Float8_e4m3fn: return run_product<MmaE4m3, true>(a, b, c);
    default: return split ? run_product<MmaSplit>(a, b, c, along) : run_product<MmaTf32>(a, b, c, along);
  }
}

void test_ldmatrix(const Tensor& from, Tensor to, bool transposed) {
  const Launch one{1, 32, 0};
  const auto stream = current_stream(from);
  const int16_t* in = data<int16_t>(from);
  transposed ? launch<ldmatrix_kernel<true>>(one, stream, in, mutable_data<int32_t>(to))
             : launch<ldmatrix_kernel<false>>(one, stream, in, mutable_data<int32_t>(to));
}

void test_stmatrix(const Tensor& from, Tensor to) {
  launch<stmatrix_kernel>(Launch{1, 32, 0}, current_stream(from), data<int32_t>(from), mutable_data<int16_t>(to));
}

// from: (32, 2).
void test_pairs(const Tensor& from, Tensor pairs, Tensor values, bool half) {
  const auto go = [&]<class T>() {
    launch<pair_kernel<T>>(Launch{1, 32, 0}, current_stream(from), data<float>(from), mutable_data<int32_t>(pairs),
                           mutable_data<float>(values));
  };
  half ? go.template operator()<Half>() : go.template operator()<BFloat16>();
}

void test_cp_async(const Tensor& from, Tensor seen, int64_t bytes, int64_t groups, int64_t pending, int64_t valid) {
  const auto go = [&]<int kBytes, int kPending>() {
    launch<cp_async_kernel<kBytes, kPending>>(Launch{1, 1, 0}, current_stream(from), data<char>(from),
                                              mutable_data<char>(seen), static_cast<int>(groups),
                                              static_cast<int>(valid));
  };
  const auto sized = [&]<int kBytes>() {
    pending == 0 ? go.template operator()<kBytes, 0>() : go.template operator()<kBytes, 1>();
  };
  bytes == 4   ? sized.template operator()<4>()
  : bytes == 8 ? sized.template operator()<8>()
               : sized.template operator()<16>();
}

}  // namespace atrousops::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(atrousops_host_cuda, m) {
  m.def("test_product(Tensor a, Tensor b, Tensor(a!) c, bool along, bool split) -> ()");
  m.def("test_ldmatrix(Tensor input, Tensor(a!) output, bool transposed) -> ()");
  m.def("test_stmatrix(Tensor input, Tensor(a!) output) -> ()");
  m.def("test_pairs(Tensor input, Tensor(a!) pairs, Tensor(b!) values, bool half) -> ()");
  m.def("test_cp_async(Tensor input, Tensor(a!) seen, int bytes, int groups, int pending, int valid) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(atrousops_host_cuda, CPU, m) {
  m.impl("test_product", TORCH_BOX(&atrousops::cuda::test_product));
  m.impl("test_ldmatrix", TORCH_BOX(&atrousops::cuda::test_ldmatrix));
  m.impl("test_stmatrix", TORCH_BOX(&atrousops::cuda::test_stmatrix));
  m.impl("test_pairs", TORCH_BOX(&atrousops::cuda::test_pairs));
  m.impl("test_cp_async", TORCH_BOX(&atrousops::cuda::test_cp_async));
}
