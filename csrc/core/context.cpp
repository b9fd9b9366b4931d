#include "core/context.h"

#include <algorithm>

#include "core/checked.h"

namespace atrousops::core {
namespace {

// Estimates for an H100, not measured here. Luo et al. (arXiv 2402.13499) measured on Hopper that mma.sync reaches 62.9
// % of the tensor cores' rate, and 2.65 TB/s of 114 multiprocessors at 1.755 GHz from others of clusters of four, 180
// cycles for one load. From that: cycles of a warp for an m16n8k16, bytes per cycle from other blocks, and cycles till
// a store has arrived and is counted. Bytes per cycle of shared memory. By instructions, which docs/kernels.md counts:
// cycles of a layer's beginning and of a tile outside its products; of the kernel's beginning, which also holds two
// trips to the L2 cache or beyond, a barrier of the cluster and the first weights' exchange, alone and for a chunk of a
// pixel. Then cycles per second, seconds per launch, and the share of multiprocessors that clusters can use.
constexpr double kMma = 4 / 0.629, kClusterBytes = 13, kFlight = 250, kSharedBytes = 128;
constexpr double kLayer = 60, kTile = 330, kBegin = 2800, kPixel = 1.4;
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

// Cycles of all layers in a block with neighbours on either side. A warp multiplies several tiles in turn. Before it
// needs rows of other blocks it loads weights and multiplies what lies in its own; rows that go to other blocks travel
// while it multiplies the tiles behind them, after the next layer's weights.
double layers_cycles(const ContextPlan& p, const ContextStack& s) {
  const int64_t chunks = context_chunks(s.channels);
  const auto tiles = static_cast<double>(ceil_div(p.rows * s.width, kContextWarps * kContextTile));
  const double step = kMma * static_cast<double>(kContextTile / 16 * chunks);
  double cycles = 0, arrival = 0;
  for (size_t i = 0; i < s.dilation.size(); ++i) {
    const int64_t steps = context_steps(s.dilation[i] ? 9 : 1, chunks);
    const double own = step * static_cast<double>(s.dilation[i] ? 3 * chunks / 2 : steps);
    const auto weights = static_cast<double>(256 * steps * chunks);
    const double before = kLayer + static_cast<double>(kContextWarps) * weights / kSharedBytes + own;
    const double end = std::max(before, arrival) + tiles * (step * static_cast<double>(steps) + kTile) - own;
    cycles += end;
    const int64_t next = i + 1 < s.dilation.size() ? s.dilation[i + 1] : 0;
    const auto rows = static_cast<double>(2 * std::min(p.rows, next) * s.width * context_pitch(chunks));
    const double room = (end - std::max(0.0, arrival - kFlight)) * kClusterBytes;
    const double left = std::max(rows / tiles, rows + context_weight_bytes(chunks) - room);
    arrival = p.cluster > 1 && next ? kFlight + left / kClusterBytes : 0;
  }
  return cycles;
}

ContextPlan with_cluster(const ContextStack& s, const ContextDevice& d, int64_t cluster) {
  ContextPlan p;
  const int64_t chunks = context_chunks(s.channels), pitch = context_pitch(chunks);
  const auto layers = static_cast<int64_t>(s.dilation.size());
  p.cluster = cluster;
  p.rows = ceil_div(s.height, cluster);
  p.halo = cluster > 1 ? std::min(p.rows, *std::max_element(s.dilation.begin(), s.dilation.end())) : 0;
  const int64_t share = 16 * ceil_div(context_weight_bytes(chunks) / 16, cluster);
  // Maps and zeros, two barriers, of each row where its taps read and who reads it, biases and weights.
  p.shared_bytes = (1 + 2 * (p.rows + 2 * p.halo) * s.width) * pitch + 16 + layers * (32 * p.rows + 32 * chunks) +
                   layers * share + 2 * context_weight_bytes(chunks);
  const double cycles = kBegin + kPixel * static_cast<double>(p.rows * s.width * chunks) + layers_cycles(p, s);
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
  for (const int64_t cluster : {16, 8, 4, 2, 1}) {
    if (cluster > d.largest_cluster) continue;
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
