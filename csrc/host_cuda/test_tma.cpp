// Single boxes through the TMA wrappers, with switches that break it, for tests.
#include "cuda/arch/tma.h"
#include "cuda/launch.h"
#include "cuda/registration.h"
#include "cuda/shared.h"

namespace atrousops::cuda {
namespace {

using Ints = std::vector<int64_t>;

// Numbers as tests/cuda/test_tma.py has them.
enum class Fault {
  none,
  no_wait,
  wrong_parity,
  misaligned,
  no_fence,
  ends_early,
  overwritten_early,
  read_back_early,
  waits_for_too_few,
};

template <int kRank>
struct Coordinates {
  int at[kRank];
};

// One thread loads a box, announced as `expected` bytes, and shows shared memory as it then is.
template <int kRank>
__global__ void load_kernel(const __grid_constant__ TensorMap map, Coordinates<kRank> c, int bytes, int expected,
                            Fault fault, unsigned char* out) {
  SharedArena arena;
  auto* const box = arena.take<unsigned char, 1024>(bytes + 1024);
  auto* const barrier = arena.take<arch::Mbarrier>(1);
  arch::tma_prefetch(&map);
  arch::mbarrier_init(barrier, 1);
  if (fault != Fault::no_fence) arch::mbarrier_fence_init();
  arch::mbarrier_arrive_expect(barrier, static_cast<unsigned>(expected));
  arch::tma_load(box + (fault == Fault::misaligned ? 64 : 0), &map, c.at, barrier);
  if (fault != Fault::no_wait) arch::mbarrier_wait(barrier, fault == Fault::wrong_parity ? 1 : 0);
  for (int i = 0; i < bytes; ++i) out[i] = box[i];
  if (fault == Fault::no_wait) arch::mbarrier_wait(barrier, 0);
}

// The bytes of `in` through shared memory to a box; `seen` is the tensor's first byte as the thread then sees it.
template <int kRank>
__global__ void store_kernel(const __grid_constant__ TensorMap map, Coordinates<kRank> c, int bytes,
                             const unsigned char* in, unsigned char* out, unsigned char* seen, Fault fault) {
  SharedArena arena;
  auto* const box = arena.take<unsigned char, 1024>(bytes + 1024);
  for (int i = static_cast<int>(threadIdx.x); i < bytes; i += 32) box[i] = in[i];
  if (fault != Fault::no_fence) arch::fence_proxy_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    arch::tma_store(&map, c.at, box + (fault == Fault::misaligned ? 64 : 0));
    arch::tma_store_commit();
    if (fault == Fault::waits_for_too_few) arch::tma_store_wait_read<1>();
    if (fault == Fault::none || fault == Fault::read_back_early) arch::tma_store_wait_read<0>();
  }
  __syncwarp();
  if (fault != Fault::ends_early) box[threadIdx.x] = 7;
  if (threadIdx.x != 0 || fault == Fault::ends_early) return;
  if (fault == Fault::read_back_early) *seen = *out;
  arch::tma_store_wait<1>();
  arch::tma_store_wait<0>();
  if (fault != Fault::read_back_early) *seen = *out;
}

TensorMapArguments arguments(const Tensor& tensor, const Ints& sizes, const Ints& strides, const Ints& box,
                             const Ints& element_strides, int64_t swizzle, bool tf32) {
  const auto type = tensor.scalar_type();
  TensorMapArguments a{};
  a.type = type == ScalarType::BFloat16 ? TensorMapType::bf16
           : type == ScalarType::Half   ? TensorMapType::f16
           : tf32                       ? TensorMapType::tf32
                                        : TensorMapType::f32;
  a.rank = static_cast<int>(sizes.size());
  a.address = tensor.const_data_ptr();
  for (size_t i = 0; i < sizes.size(); ++i) {
    a.sizes[i] = sizes[i];
    a.strides[i] = strides[i];
    a.box[i] = static_cast<int>(box[i]);
    a.element_strides[i] = static_cast<int>(element_strides[i]);
  }
  a.swizzle = static_cast<Swizzle>(swizzle);
  return a;
}

// f.operator()<rank>(coordinates) for the number of coordinates there are.
template <class F>
void with_rank(const Ints& at, const F& f) {
  const auto go = [&]<int kRank>() {
    Coordinates<kRank> c;
    for (int i = 0; i < kRank; ++i) c.at[i] = static_cast<int>(at[static_cast<size_t>(i)]);
    f(c);
  };
  switch (at.size()) {
    case 2: return go.template operator()<2>();
    case 3: return go.template operator()<3>();
    case 4: return go.template operator()<4>();
    case 5: return go.template operator()<5>();
    default: STD_TORCH_CHECK(false, "2 to 5 coordinates");
  }
}

void test_tma_load(const Tensor& tensor, const Ints& sizes, const Ints& strides, const Ints& box,
                   const Ints& element_strides, const Ints& at, int64_t swizzle, bool tf32, int64_t expected,
                   int64_t fault, Tensor out) {
  const auto a = arguments(tensor, sizes, strides, box, element_strides, swizzle, tf32);
  const TensorMap map = make_tensor_map(a);
  const int bytes = static_cast<int>(out.numel());
  with_rank(at, [&]<int kRank>(Coordinates<kRank> c) {
    launch<load_kernel<kRank>>({1, 1, bytes + 1024 + 16}, current_stream(tensor), map, c, bytes,
                               static_cast<int>(expected), static_cast<Fault>(fault), mutable_data<unsigned char>(out));
  });
}

void test_tma_store(const Tensor& bytes, const Ints& sizes, const Ints& strides, const Ints& box, const Ints& at,
                    int64_t swizzle, int64_t fault, Tensor out, Tensor seen) {
  const Ints ones(sizes.size(), 1);
  const TensorMap map = make_tensor_map(arguments(out, sizes, strides, box, ones, swizzle, false));
  const int count = static_cast<int>(bytes.numel());
  with_rank(at, [&]<int kRank>(Coordinates<kRank> c) {
    launch<store_kernel<kRank>>({1, 32, count + 1024}, current_stream(bytes), map, c, count, data<unsigned char>(bytes),
                                static_cast<unsigned char*>(out.mutable_data_ptr()), mutable_data<unsigned char>(seen),
                                static_cast<Fault>(fault));
  });
}

}  // namespace
}  // namespace atrousops::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(atrousops_host_cuda, m) {
  // clang-format off
  m.def("test_tma_load(Tensor tensor, int[] sizes, int[] strides, int[] box, int[] element_strides, int[] at, int swizzle, bool tf32, int expected, int fault, Tensor(a!) out) -> ()");
  m.def("test_tma_store(Tensor bytes, int[] sizes, int[] strides, int[] box, int[] at, int swizzle, int fault, Tensor(a!) out, Tensor(b!) seen) -> ()");
  // clang-format on
}
ATROUSOPS_CUDA_LIBRARY(m) {
  m.impl("test_tma_load", TORCH_BOX(&atrousops::cuda::test_tma_load));
  m.impl("test_tma_store", TORCH_BOX(&atrousops::cuda::test_tma_store));
}
