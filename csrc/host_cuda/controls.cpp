// What tests call by ctypes, and the state behind it.
#include <sstream>

#include "host_cuda/coverage.h"
#include "host_cuda/engine.h"
#include "host_cuda/executor.h"
#include "host_cuda/runtime.h"

namespace atrousops::host_cuda {

Counter*& counters() {
  static Counter* head = nullptr;
  return head;
}
Counter::Counter(Kind kind, std::string_view name) : kind(kind), name(name), next(counters()) { counters() = this; }

// An H100's.
static core::DeviceProperties device{132, 90, 227 << 10, 228 << 10, 50 << 20};
const core::DeviceProperties& properties(int) { return device; }
void set_properties(const core::DeviceProperties& p) { device = p; }
unsigned& largest_cluster() {
  static unsigned blocks = 16;
  return blocks;
}

static Executor chosen = nullptr;
Executor executor() { return chosen; }

}  // namespace atrousops::host_cuda

#define ATROUSOPS_EXPORT extern "C" __attribute__((visibility("default")))

// Lines "kernel|wrapper TAB runs TAB name".
ATROUSOPS_EXPORT const char* atrousops_host_cuda_coverage() {
  using namespace atrousops::host_cuda;
  static std::string text;
  std::ostringstream out;
  for (const Counter* c = counters(); c; c = c->next)
    out << (c->kind == Counter::Kind::kernel ? "kernel" : "wrapper") << '\t' << c->runs << '\t' << c->name << '\n';
  text = out.str();
  return text.c_str();
}

// 0: ascending order.
ATROUSOPS_EXPORT void atrousops_host_cuda_set_order_seed(uint64_t seed) { atrousops::host_cuda::set_order_seed(seed); }

// A warp goes on for as long as it can.
ATROUSOPS_EXPORT void atrousops_host_cuda_set_warps_ahead(bool ahead) { atrousops::host_cuda::set_warps_ahead(ahead); }

ATROUSOPS_EXPORT void atrousops_host_cuda_set_device(int multiprocessors, int capability, int64_t shared_per_block,
                                                     int64_t shared_per_multiprocessor, int64_t l2_bytes) {
  atrousops::host_cuda::set_properties(
      {multiprocessors, capability, shared_per_block, shared_per_multiprocessor, l2_bytes});
}

// Null: launches run the kernels' source again.
ATROUSOPS_EXPORT void atrousops_host_cuda_set_executor(atrousops::host_cuda::Executor e) {
  atrousops::host_cuda::chosen = e;
}

ATROUSOPS_EXPORT void atrousops_host_cuda_set_largest_cluster(unsigned blocks) {
  atrousops::host_cuda::largest_cluster() = blocks;
}
