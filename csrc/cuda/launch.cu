#include "cuda/launch.h"

#if !defined(ATROUSOPS_HOST_CUDA)

#include <map>
#include <mutex>
#include <tuple>

namespace atrousops::cuda {

static std::string triple(dim3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

std::string describe(std::string_view pretty_function, const Launch& l) {
  const size_t begin = pretty_function.find("Kernel = ") + 9;
  const std::string_view name = pretty_function.substr(begin, pretty_function.find(';', begin) - begin);
  return "launching " + std::string(name) + ", grid " + triple(l.grid) + ", block " + triple(l.block) + ", " +
         std::to_string(l.shared_bytes) + " bytes shared";
}

void allow_shared(const void* kernel, std::array<std::atomic<int64_t>, 64>& allowed, const Launch& l,
                  std::string_view pretty_function) {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  std::atomic<int64_t>* known = device < 64 ? &allowed[static_cast<size_t>(device)] : nullptr;
  if (known && known->load(std::memory_order_relaxed) >= l.shared_bytes) return;
  // The largest possible, so that threads that raise it at once cannot lower it for each other.
  const int64_t most = properties(device).shared_per_block;
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), describe(pretty_function, l));
  const int64_t limit = most - static_cast<int64_t>(attributes.sharedSizeBytes);
  STD_TORCH_CHECK(l.shared_bytes <= limit, describe(pretty_function, l), ": the device has ", limit);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(limit)),
             describe(pretty_function, l));
  if (known) known->store(limit, std::memory_order_relaxed);
}

bool can_place(const void* kernel, const Launch& l, std::string_view pretty_function) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, unsigned, int64_t>, bool> known;
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  const std::scoped_lock lock(mutex);
  const auto [entry, is_new] = known.try_emplace({device, kernel, l.cluster, l.shared_bytes}, false);
  if (is_new) {
    // More blocks than any device takes have to be allowed first.
    constexpr unsigned kPortableCluster = 8;
    if (l.cluster > kPortableCluster)
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
                 describe(pretty_function, l));
    cudaLaunchAttribute cluster{};
    const cudaLaunchConfig_t config = configure(l, cluster);
    int clusters = 0;
    check_cuda(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), describe(pretty_function, l));
    entry->second = clusters > 0;
  }
  return entry->second;
}

}  // namespace atrousops::cuda

#endif
