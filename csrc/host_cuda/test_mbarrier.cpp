// mbarriers for tests: one thread that does as it is told, and a pipeline with switches that break it.
#include "cuda/arch/mbarrier.h"
#include "cuda/launch.h"
#include "cuda/registration.h"
#include "cuda/shared.h"

namespace atrousops::cuda {
namespace {

// Pairs (what, value), numbered as tests/cuda/test_mbarrier.py has them; what try_wait said goes to `seen`.
__global__ void script_kernel(const int64_t* steps, int64_t count, int64_t* seen) {
  ATROUSOPS_SHARED(arch::Mbarrier, barrier, 1);
  for (int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<unsigned>(steps[2 * i + 1]);
    switch (steps[2 * i]) {
      case 0: arch::mbarrier_init(barrier, value); break;
      case 1: arch::mbarrier_invalidate(barrier); break;
      case 2: arch::mbarrier_arrive(barrier, value); break;
      case 3: arch::mbarrier_expect(barrier, value); break;
      case 4: arch::mbarrier_arrive_expect(barrier, value); break;
      case 5: *seen++ = arch::mbarrier_try_wait(barrier, value); break;
      case 6: arch::mbarrier_wait(barrier, value); break;
      default: barrier->opaque = value;
    }
  }
}

enum class Fault { none, no_wait_for_full, no_wait_for_empty, first_parity, full_count, asks_once, no_inner_arrive };

// A warp writes `rounds` rows of 32 through two stages, another reads them turned round.
template <Fault kFault>
__global__ void pipeline_kernel(const float* in, float* out, int rounds) {
  ATROUSOPS_SHARED(arch::Mbarrier, full, 2);
  ATROUSOPS_SHARED(arch::Mbarrier, empty, 2);
  ATROUSOPS_SHARED(float, stages, 2 * 32);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < 2; ++s) {
      arch::mbarrier_init(full + s, kFault == Fault::full_count ? 33 : 32);
      arch::mbarrier_init(empty + s, 32);
    }
    arch::mbarrier_fence_init();
  }
  __syncthreads();
  unsigned stage = 0, parity = 0;
  for (int i = 0; i < rounds; ++i) {
    float* const row = stages + 32 * stage;
    if (threadIdx.x < 32) {
      const unsigned before = kFault == Fault::first_parity ? parity : parity ^ 1;
      if (kFault != Fault::no_wait_for_empty) arch::mbarrier_wait(empty + stage, before);
      row[lane] = in[32 * i + lane];
      arch::mbarrier_arrive(full + stage);
    } else {
      if (kFault == Fault::asks_once) {
        arch::mbarrier_try_wait(full + stage, parity);
      } else if (kFault != Fault::no_wait_for_full) {
        while (!arch::mbarrier_try_wait(full + stage, parity)) {
        }
      }
      out[32 * i + lane] = row[31 - lane];
      if (kFault != Fault::no_inner_arrive || lane != 5) arch::mbarrier_arrive(empty + stage);
    }
    if (++stage == 2) {
      stage = 0;
      parity ^= 1;
    }
  }
}

template <Fault... kFaults>
void run(const Tensor& in, Tensor& out, int64_t fault) {
  const auto one = [&]<Fault kFault>() {
    launch<pipeline_kernel<kFault>>({1, 64}, current_stream(in), data<float>(in), mutable_data<float>(out),
                                    static_cast<int>(in.numel() / 32));
    return true;
  };
  const bool known = ((static_cast<Fault>(fault) == kFaults && one.template operator()<kFaults>()) || ...);
  STD_TORCH_CHECK(known, "there is no fault ", fault);
}

void test_mbarrier_script(const Tensor& steps, Tensor seen) {
  launch<script_kernel>({1, 1}, current_stream(steps), data<int64_t>(steps), steps.numel() / 2,
                        mutable_data<int64_t>(seen));
}

void test_mbarrier_pipeline(const Tensor& in, Tensor out, int64_t fault) {
  using enum Fault;
  run<none, no_wait_for_full, no_wait_for_empty, first_parity, full_count, asks_once, no_inner_arrive>(in, out, fault);
}

}  // namespace
}  // namespace atrousops::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(atrousops_host_cuda, m) {
  m.def("test_mbarrier_script(Tensor steps, Tensor(a!) seen) -> ()");
  m.def("test_mbarrier_pipeline(Tensor input, Tensor(a!) output, int fault) -> ()");
}
ATROUSOPS_CUDA_LIBRARY(m) {
  m.impl("test_mbarrier_script", TORCH_BOX(&atrousops::cuda::test_mbarrier_script));
  m.impl("test_mbarrier_pipeline", TORCH_BOX(&atrousops::cuda::test_mbarrier_pipeline));
}
