// The candidates on a GPU with our CUDA library: PyTorch's, and our kernel according to cuda_kernels.h.
#include "core/plan_candidates.h"
#include "core/weight_boxes.h"

namespace atrousops::core {
namespace {

constexpr int64_t kSplits = 4;  // of a sum among blocks, where tensor cores have too few tiles

template <CudaKernel kernel>
const char* rule(const Problem& p, const Device& d, int64_t itemsize) {
  return why_not(kernel, p, itemsize, d.math);
}

// The tensor-core kernels work in channels_last: maps in NCHW are converted before and after them.
double turning_seconds(const Facts& f, const Device& d) {
  const Problem& p = f.problem;
  return static_cast<double>(p.input_elements() + p.output_elements()) * f.itemsize / d.rates.turned;
}

double gemm_seconds(const Facts& f, const Device& d, double rate, int64_t splits) {
  const int64_t columns = width_and_depth(f.problem).first / f.problem.groups <= 32 ? 32 : 64;
  return tiled_seconds(f, d, rate, {columns == 32 ? 128 : 64, columns, splits});
}
double wgmma_seconds(const Facts& f, const Device& d) {
  const Problem& p = f.problem;
  const double work = p.kind == Kind::weight_grad
                          ? plan_weight_boxes(p, d.multiprocessors, d.rates.wgmma).seconds
                          : plan_boxes({{p}, f.itemsize, d.multiprocessors, d.rates.wgmma}).seconds;
  return d.rates.our_call + work + f.bytes_floor / d.rates.copy + turning_seconds(f, d);
}
double mma_seconds(const Facts& f, const Device& d) {
  return gemm_seconds(f, d, d.rates.tensor, kSplits) + turning_seconds(f, d);
}
double simt_seconds(const Facts& f, const Device& d) { return gemm_seconds(f, d, d.rates.gemm, 1); }
double depthwise_seconds(const Facts& f, const Device& d) { return loop_seconds(f, d, d.rates.depthwise); }
double grouped_seconds(const Facts& f, const Device& d) { return loop_seconds(f, d, d.rates.grouped); }

constexpr Entry kCuda[] = {
    kAten,
    {"depthwise", rule<CudaKernel::depthwise>, depthwise_seconds, packed_weights},
    {"grouped", rule<CudaKernel::grouped>, grouped_seconds, packed_weights},
    {"wgmma", rule<CudaKernel::wgmma>, wgmma_seconds, packed_weights},
    {"mma", rule<CudaKernel::mma>, mma_seconds, packed_weights},
    {"simt", rule<CudaKernel::simt>, simt_seconds, packed_weights},
};

}  // namespace

std::span<const Entry> cuda_entries() { return kCuda; }

}  // namespace atrousops::core
