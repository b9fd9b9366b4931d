// The context module as one launch. A cluster of blocks has an image; each block keeps its rows of the maps in shared
// memory. Rows that the taps of the next layer need in another block (with dilation 16 and 4 rows a block, those are
// not its neighbours) are pushed there as soon as they are computed, by st.async, which counts them on that block's
// barrier: a block waits for the bytes that it needs, and not for the whole cluster. Between the first layer and the
// last nothing goes through device memory.
//
// A layer begins with the taps of the middle row of the kernel, which read this block's rows alone, while the others'
// are on their way. A barrier of the whole cluster only says that the halo of the layer before has been read; between
// arriving there and waiting lies a layer.
//
// A product's 16 x 16 fragment of pixels comes by ldmatrix, whose lanes say where each pixel lies: any displacement
// costs the same, and a tap outside of the image reads a chunk of zeros. So chunks of eight channels of all taps stand
// one behind the other along the reduction, two a product, and 21 channels are padded to 24, not to 32. A warp holds a
// layer's weights in registers, for two tiles or more: with fewer, larger warps they are read less often. wgmma would
// read the same bytes of shared memory, which bound both here, and could not displace pixels of 48 bytes.
#include "cuda/arch/ldmatrix.h"
#include "cuda/arch/mma.h"
#include "cuda/arch/store_async.h"
#include "cuda/context_maps.cuh"

namespace atrousops::cuda {
namespace {

constexpr int kTilePixels = static_cast<int>(core::kContextTile), kFragments = kTilePixels / 16;

// A layer's products for one warp. kTaps: 9, or 1 for a 1x1 kernel.
template <class T, int kChunks, int kTaps>
struct Products {
  using S = Shape<kChunks>;
  static constexpr int kSteps = S::steps(kTaps);
  // The taps of the kernel's middle row.
  static constexpr int kOwnSteps = kTaps == 1 ? kSteps : 3 * kChunks / 2;
  uint2 b[kSteps][kChunks];
  float2 bias[kChunks];
  float c[kFragments][kChunks][4];
  // Where a lane's pixel of a fragment lies for each tap; half of the lanes are a chunk further.
  int from[kFragments][kTaps];

  __device__ __forceinline__ Products(const Layout<kChunks>& shared, int layer) {
    const auto* words = reinterpret_cast<const uint2*>(shared.weights(layer));
#pragma unroll
    for (int i = 0; i < kSteps * kChunks; ++i) b[i / kChunks][i % kChunks] = words[i * 32 + lane()];
    const auto* biases = reinterpret_cast<const float2*>(shared.biases + layer * S::kChannels);
#pragma unroll
    for (int j = 0; j < kChunks; ++j) bias[j] = biases[4 * j + lane() % 4];
  }
  // Begins a tile.
  __device__ __forceinline__ void place(const ContextArgs& a, const Maps<kChunks>& maps, const int4* lines, int tile,
                                        int dilation) {
    const int chunk = lane() / 16 * 16, zeros = maps.zeros() + chunk;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const int pixel = tile + 16 * f + lane() % 16;
      const bool there = pixel < maps.pixels();
      int row = there ? pixel : 0;
      const int x = a.width.split(row);
      const int4 begins = lines[row];
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        const int line = tap / 3 == 0 ? begins.x : tap / 3 == 1 ? begins.y : begins.z;
        const int at = x + (kTaps == 1 ? 0 : tap_column(tap) * dilation);
        const bool inside = there && line >= 0 && static_cast<unsigned>(at) < static_cast<unsigned>(maps.width);
        from[f][tap] = inside ? line + at * S::kPitch + chunk : zeros;
      }
#pragma unroll
      for (int j = 0; j < kChunks; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) c[f][j][i] = 0.0f;
    }
  }
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void add(const Maps<kChunks>& maps) {
    const bool second = lane() >= 16;
#pragma unroll
    for (int step = kBegin; step < kEnd; ++step)
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        // The first half of the lanes points at one chunk, the other at the next, perhaps of another tap.
        const int tap0 = 2 * step / kChunks, chunk0 = 2 * step % kChunks;
        const int tap1 = (2 * step + 1) / kChunks, chunk1 = (2 * step + 1) % kChunks;
        int at = from[f][tap0] + 16 * chunk0;
        if (tap1 != tap0 && second)
          at = tap1 < kTaps ? from[f][tap1 < kTaps ? tap1 : 0] + 16 * chunk1 - 16 : maps.zeros();
        uint32_t pixels[4];
        arch::ldmatrix_x4(pixels, maps.bytes + at);
#pragma unroll
        for (int j = 0; j < kChunks; ++j) arch::mma_16<T>(c[f][j], pixels, b[step][j].x, b[step][j].y);
      }
  }
  // f(pixel, channel, a lane's values of that channel and the next) for the tile's sums.
  template <class F>
  __device__ __forceinline__ void for_each(const Maps<kChunks>& maps, int tile, bool truncate, const F& f) const {
#pragma unroll
    for (int i = 0; i < 2 * kFragments; ++i) {
      const int pixel = tile + lane() / 4 + 8 * i;
      if (pixel >= maps.pixels()) continue;
#pragma unroll
      for (int j = 0; j < kChunks; ++j) {
        float u = c[i / 2][j][i % 2 * 2] + bias[j].x, v = c[i / 2][j][i % 2 * 2 + 1] + bias[j].y;
        if (truncate) u = u < 0 ? 0 : u, v = v < 0 ? 0 : v;
        f(pixel, 8 * j + lane() % 4 * 2, static_cast<T>(u), static_cast<T>(v));
      }
    }
  }
};

// A tile of the map `which`, complete in this block's memory, to those that read it in the next layer.
template <int kChunks>
__device__ __forceinline__ void push(const ContextArgs& a, const Maps<kChunks>& maps, const uint4* readers, int tile,
                                     int which) {
  constexpr int kQuads = Shape<kChunks>::kPitch / 16, kEach = kTilePixels * kQuads / 32;
  __syncwarp();
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int quad = tile * kQuads + lane() + 32 * j, pixel = quad / kQuads;
    if (pixel >= maps.pixels()) continue;
    const uint4 v = *reinterpret_cast<const uint4*>(maps.bytes + maps.own(which) + 16 * quad);
    const int row = a.width.divide(pixel), within = 16 * quad - row * maps.line;
    const uint4 to = readers[row];
    if (to.y) arch::store_async(to.x + within, v, to.y);
    if (to.w) arch::store_async(to.z + within, v, to.w);
  }
}

// A tile of the last layer.
template <class T, int kChunks, class P>
__device__ __forceinline__ void store(const ContextArgs& a, int64_t image, const Maps<kChunks>& maps, const P& p,
                                      int tile) {
  T* const output = static_cast<T*>(a.output) + image * a.image_stride + maps.begin * maps.width * a.pixel_stride;
  const int channels = a.channels, channel_stride = a.channel_stride, pixel_stride = a.pixel_stride;
  p.for_each(maps, tile, false, [&](int pixel, int channel, T u, T v) {
    const int at = pixel * pixel_stride + channel * channel_stride;
    if (channel < channels) output[at] = u;
    if (channel + 1 < channels) output[at + channel_stride] = v;
  });
}

// One layer of this block's rows, from map `layer % 2` and its halo to the other map, and to other blocks: what a warp
// does that multiplies.
template <class T, int kChunks, int kTaps>
__device__ __forceinline__ void run_layer(const ContextArgs& a, int64_t image, const Maps<kChunks>& maps,
                                          const Layout<kChunks>& shared, int layer) {
  const int which = layer % 2, dilation = a.layer[layer].dilation, stride = kContextWarps * kTilePixels;
  const bool last = layer == a.layers - 1;
  using P = Products<T, kChunks, kTaps>;
  P p(shared, layer);
  int tile = warp() * kTilePixels;
  for (bool first = true; tile < maps.pixels(); tile += stride, first = false) {
    p.place(a, maps, shared.lines + layer * maps.own_rows, tile, dilation);
    p.template add<0, P::kOwnSteps>(maps);
    if (first && layer > 0) arch::mbarrier_wait_cluster(shared.full + which, (layer - 1) / 2 % 2);
    p.template add<P::kOwnSteps, P::kSteps>(maps);
    if (last) {
      store<T, kChunks>(a, image, maps, p, tile);
      continue;
    }
    char* const to = maps.bytes + maps.own(1 - which);
    p.for_each(maps, tile, true, [&](int pixel, int channel, T u, T v) {
      *reinterpret_cast<uint32_t*>(to + pixel * Shape<kChunks>::kPitch + 2 * channel) = bits_of(u) | bits_of(v) << 16;
    });
    if (first) arch::cluster_wait();
    if (tile + stride >= maps.pixels()) arch::cluster_arrive();
    push<kChunks>(a, maps, shared.readers + layer * maps.own_rows, tile, 1 - which);
  }
  if (last || warp() * kTilePixels < maps.pixels()) return;
  arch::cluster_wait();
  arch::cluster_arrive();
}

// What a warp does that fetches the next layer's weights: when no rows are on their way.
template <int kChunks>
__device__ __forceinline__ void run_fetch(const ContextArgs& a, const Layout<kChunks>& shared, int layer) {
  if (layer == a.layers - 1) return;
  if (layer > 0) arch::mbarrier_wait_cluster(shared.full + layer % 2, (layer - 1) / 2 % 2);
  fetch_weights(shared, layer + 1, static_cast<int>(threadIdx.x) - kContextThreads / 2, kContextThreads / 2);
  arch::cluster_wait();
  arch::cluster_arrive();
}

template <class T, int kChunks>
__global__ void __launch_bounds__(kContextThreads, 1) context_module_kernel(const __grid_constant__ ContextArgs a) {
  const int rank = static_cast<int>(arch::cluster_rank()), blocks = static_cast<int>(arch::cluster_size());
  const int64_t image = static_cast<int64_t>(blockIdx.x) / blocks;
  SharedArena arena;
  const Layout<kChunks> shared(arena, a, blocks);
  const Maps<kChunks> maps(a, shared.maps, rank);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int i = 0; i < 2; ++i) arch::mbarrier_init(shared.full + i, 1);
    arch::mbarrier_fence_init();
  }
  if (thread < Shape<kChunks>::kPitch / 16) reinterpret_cast<uint4*>(maps.bytes + maps.zeros())[thread] = {};
  load_all<T, kChunks>(a, image, maps, shared, rank);
  find_rows(a, maps, shared, rank);
  arch::cluster_arrive();
  arch::cluster_wait();
  fetch_weights(shared, 0, thread, kContextThreads);
  // Arrivals say that the halo of a layer has been read, and the weights of the next; waited for a layer later.
  arch::cluster_arrive();
  for (int layer = 0; layer < a.layers; ++layer) {
    const int dilation = a.layer[layer].dilation;
    // Behind it the rows of this block and the weights are there.
    __syncthreads();
    if (thread == 0 && layer > 0)
      arch::mbarrier_arrive_expect(shared.full + layer % 2, static_cast<unsigned>(maps.expected(dilation)));
    if (warp() >= kContextWarps) {
      run_fetch(a, shared, layer);
    } else if (dilation) {
      run_layer<T, kChunks, 9>(a, image, maps, shared, layer);
    } else {
      run_layer<T, kChunks, 1>(a, image, maps, shared, layer);
    }
  }
  // No block ends while others fetch from it.
  arch::cluster_wait();
}

template <auto Kernel>
bool start_placed(const ContextArgs& a, const Launch& l, Stream stream) {
  if (!can_place<Kernel>(l)) return false;
  launch<Kernel>(l, stream, a);
  return true;
}

template <class T>
bool start(const ContextArgs& a, const Launch& l, Stream stream) {
  switch (core::context_chunks(a.channels)) {
    case 1: return start_placed<context_module_kernel<T, 1>>(a, l, stream);
    case 2: return start_placed<context_module_kernel<T, 2>>(a, l, stream);
    case 3: return start_placed<context_module_kernel<T, 3>>(a, l, stream);
    case 4: return start_placed<context_module_kernel<T, 4>>(a, l, stream);
    default: STD_TORCH_CHECK(false, "context_module: no kernel for ", a.channels, " channels");
  }
}

}  // namespace

bool context_module_sm90a(const ContextArgs& args, const core::ContextPlan& plan, int64_t images, ScalarType dtype,
                          Stream stream) {
  const int64_t blocks = images * plan.cluster;
  STD_TORCH_CHECK(blocks <= INT32_MAX, "context_module: up to 2^31 blocks; got ", blocks);
  Launch l{static_cast<unsigned>(blocks), kContextThreads, plan.shared_bytes};
  l.cluster = static_cast<unsigned>(plan.cluster);
  if (dtype == ScalarType::BFloat16) return start<BFloat16>(args, l, stream);
  STD_TORCH_CHECK(dtype == ScalarType::Half, "context_module: one launch takes 16-bit types");
  return start<Half>(args, l, stream);
}

}  // namespace atrousops::cuda
