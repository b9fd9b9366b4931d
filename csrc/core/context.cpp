#include "core/context.h"

#include <algorithm>

#include "core/checked.h"

namespace atrousops::core {
namespace {

// Estimates for an H100, not measured. Cycles of a multiprocessor for mma.sync m16n8k16 from fragments in shared
// memory; bytes per cycle from other blocks of a cluster; cycles of a layer's barriers, and of loading and storing a
// chunk of a pixel. Then cycles per second, seconds per launch, and the share of multiprocessors that clusters of eight
// can use.
constexpr double kMma = 2.0, kClusterBytes = 24, kLayer = 1500, kPixel = 2.0;
constexpr double kClock = 1.6e9, kLaunch = 6e-6, kClustered = 0.97;

constexpr int64_t kMost = 1 << 20;  // kernels count in 32 bits

std::string refusal(const ContextStack& s, const ContextDevice& d) {
  if (d.capability != 90) return "needs compute capability 9.0";
  if (s.itemsize != 2) return "only 16-bit types: in fp32 one cluster is slower than the layers on the whole device";
  const auto layers = static_cast<int64_t>(s.dilation.size());
  if (layers < 1 || layers > kContextLayers) return "takes 1 to " + std::to_string(kContextLayers) + " layers";
  if (s.channels > 8 * kContextChunks)
    return "takes up to " + std::to_string(8 * kContextChunks) + " channels, of which the weights fit into registers";
  if (s.height > kMost || s.width > kMost || *std::max_element(s.dilation.begin(), s.dilation.end()) > kMost)
    return "takes rows, columns and dilations up to 2^20";
  return "";
}

ContextPlan with_cluster(const ContextStack& s, const ContextDevice& d, int64_t cluster) {
  ContextPlan p;
  const int64_t chunks = context_chunks(s.channels), pitch = context_pitch(chunks);
  const auto layers = static_cast<int64_t>(s.dilation.size());
  p.cluster = cluster;
  p.rows = ceil_div(s.height, cluster);
  p.halo = std::min(p.rows, *std::max_element(s.dilation.begin(), s.dilation.end()));
  const int64_t weights = (ceil_div(layers, cluster) + 2) * context_weight_bytes(chunks);
  p.shared_bytes = 16 + 2 * (p.rows + p.halo) * s.width * pitch + weights;
  double cycles = kPixel * static_cast<double>(p.rows * s.width * chunks);
  for (const int64_t dilation : s.dilation) {
    const double products = static_cast<double>(ceil_div(p.rows * s.width, 16) * chunks) *
                            static_cast<double>(context_steps(dilation ? 9 : 1, chunks));
    const double pulled = static_cast<double>(2 * std::min(p.rows, dilation) * s.width * pitch);
    cycles += kMma * products + (cluster > 1 ? pulled / kClusterBytes : 0) + kLayer;
  }
  const auto usable = static_cast<double>(d.multiprocessors) * (cluster > 1 ? kClustered : 1);
  const int64_t at_once = std::max<int64_t>(1, static_cast<int64_t>(usable) / cluster);
  p.seconds = kLaunch + static_cast<double>(ceil_div(std::max<int64_t>(s.n, 1), at_once)) * cycles / kClock;
  return p;
}

}  // namespace

ContextPlan context_plan(const ContextStack& s, const ContextDevice& d) {
  ContextPlan best;
  best.reason = refusal(s, d);
  if (!best.reason.empty()) return best;
  int64_t least = 0;
  for (const int64_t cluster : {8, 4, 2, 1}) {
    const ContextPlan p = with_cluster(s, d, cluster);
    least = least ? std::min(least, p.shared_bytes) : p.shared_bytes;
    if (p.shared_bytes > d.shared_per_block || cluster > d.multiprocessors) continue;
    if (best.cluster == 0 || p.seconds < best.seconds) best = p;
  }
  if (best.cluster == 0)
    best.reason = "needs " + std::to_string(least) + " bytes of shared memory a block; there are " +
                  std::to_string(d.shared_per_block);
  return best;
}

}  // namespace atrousops::core
