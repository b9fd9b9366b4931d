// flush_subnormals: y = 0 where |x| is below the dtype's smallest normal number, else x.
#include "cuda/launch.h"
#include "cuda/pack.h"
#include "cuda/platform.h"
#include "cuda/registration.h"

namespace atrousops::cuda {

constexpr int kThreads = 256;

// Judged by the bits: arithmetic might flush what it is asked to look at. Normal numbers have an exponent.

template <class Bits, Bits kExponent, int N>
__global__ void __launch_bounds__(kThreads) flush_subnormals_kernel(const Bits* input, Bits* output, int64_t packs) {
  for (int64_t i = first_index(); i < packs; i += index_step()) {
    Pack<Bits, N> v = load_pack<Bits, N>(input + i * N);
#pragma unroll
    for (int k = 0; k < N; ++k) v[k] = v[k] & kExponent ? v[k] : Bits(0);
    store_pack(output + i * N, v);
  }
}

template <class Bits, Bits kExponent>
static void run(const Tensor& in, Tensor& out) {
  const Bits* from = data<Bits>(in);
  Bits* to = mutable_data<Bits>(out);
  const Stream stream = current_stream(in);
  const auto go = [&]<int N>(int64_t begin, int64_t packs) {
    launch<flush_subnormals_kernel<Bits, kExponent, N>>({blocks_for(packs, kThreads), kThreads}, stream, from + begin,
                                                        to + begin, packs);
  };
  constexpr int kN = kPack<Bits>;
  const bool fits = packs_at<kN>(from) && packs_at<kN>(to);
  const int64_t packed = fits ? in.numel() / kN : 0;
  go.template operator()<kN>(0, packed);
  go.template operator()<1>(packed * kN, in.numel() - packed * kN);
}

Tensor flush_subnormals(const Tensor& input) {
  const DeviceGuard guard(input);
  const bool nhwc = prefers_channels_last(input);
  const Tensor in = dense(input, nhwc);
  Tensor out = in.dim() >= 3 ? empty(sizes_of(in), in, nhwc) : torch::stable::empty_like(in);
  switch (in.scalar_type()) {
    case ScalarType::Double: run<uint64_t, 0x7ff0000000000000>(in, out); break;
    case ScalarType::Float: run<uint32_t, 0x7f800000>(in, out); break;
    case ScalarType::BFloat16: run<uint16_t, 0x7f80>(in, out); break;
    case ScalarType::Half: run<uint16_t, 0x7c00>(in, out); break;
    default: STD_TORCH_CHECK(false, "flush_subnormals: dtype must be float64, float32, bfloat16 or float16");
  }
  return out;
}

}  // namespace atrousops::cuda

ATROUSOPS_CUDA_LIBRARY(m) { m.impl("flush_subnormals", TORCH_BOX(&atrousops::cuda::flush_subnormals)); }
