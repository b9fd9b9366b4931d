// The context module as one launch: a stack of convolutions of few channels, 3x3 or 1x1, whose maps stay in the shared
// memory of a cluster of blocks. Computes the cluster, its resources and predicted time, or why one launch is
// impossible.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace atrousops::core {

// One layer: the dilation and padding of a 3x3 kernel; 0 is a 1x1 kernel.
struct ContextStack {
  int64_t n, channels, height, width;
  std::vector<int64_t> dilation;
  int64_t itemsize;
};

inline constexpr int64_t kContextLayers = 8, kContextChunks = 4, kContextWarps = 4;
// Pixels that a warp multiplies at a time.
inline constexpr int64_t kContextTile = 32;
// Blocks of the largest cluster, and of those that any device of capability 9.0 takes unless it is a slice.
inline constexpr int64_t kContextBlocks = 16, kPortableBlocks = 8;

struct ContextDevice {
  int64_t multiprocessors, capability, shared_per_block;
  int64_t largest_cluster = kContextBlocks;
};

// Blocks of a cluster share an image's rows: each has `rows` of them, and up to `halo` rows of others on either side.
struct ContextPlan {
  int64_t cluster = 0;  // 0: it does not run
  int64_t rows = 0, halo = 0, shared_bytes = 0;
  double seconds = 0;  // predicted
  std::string reason;  // why it does not run
};

// Channels are stored in chunks of eight (16 bytes). A pixel takes an odd number of chunks, so that the eight lanes of
// a fragment use different banks.
constexpr int64_t context_chunks(int64_t channels) { return (channels + 7) / 8; }
constexpr int64_t context_pitch(int64_t chunks) { return 16 * (chunks | 1); }
// Sizes for mma, two chunks each, and for a layer's weights in the order of their fragments.
constexpr int64_t context_steps(int64_t taps, int64_t chunks) { return (taps * chunks + 1) / 2; }
constexpr int64_t context_weight_bytes(int64_t chunks) { return context_steps(9, chunks) * chunks * 256; }

ContextPlan context_plan(const ContextStack& stack, const ContextDevice& device);

}  // namespace atrousops::core
