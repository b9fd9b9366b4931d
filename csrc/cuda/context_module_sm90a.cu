// The context module as one launch. A cluster of blocks has an image; each block keeps its rows of the maps in shared
// memory, and before a layer fetches the rows beyond them that the layer's taps read from the blocks that have them:
// with dilation 16 and 8 rows a block, those are not its neighbours. Between the first layer and the last nothing goes
// through device memory.
//
// A product's 16 x 16 fragment of pixels comes by ldmatrix, whose lanes say where each pixel lies: any displacement
// costs the same, and a tap outside of the image reads a chunk of zeros. So chunks of eight channels of all taps stand
// one behind the other along the reduction, two a product, and 21 channels are padded to 24, not to 32. A warp holds a
// layer's weights in registers. wgmma would read the same bytes of shared memory, which bound both here, and could not
// displace pixels of 48 bytes.
#include "cuda/arch/cluster.h"
#include "cuda/arch/ldmatrix.h"
#include "cuda/arch/mma.h"
#include "cuda/context_module.h"
#include "cuda/shared.h"

namespace atrousops::cuda {
namespace {

constexpr int kWarps = static_cast<int>(core::kContextWarps), kThreads = 32 * kWarps;
// Pixels of a warp's tile: two fragments.
constexpr int kFragments = 2, kTilePixels = 16 * kFragments;

template <int kChunks>
struct Shape {
  static constexpr int kChannels = 8 * kChunks;
  static constexpr int kPitch = static_cast<int>(core::context_pitch(kChunks));  // bytes of a pixel
  static constexpr int steps(int taps) { return static_cast<int>(core::context_steps(taps, kChunks)); }
  static constexpr int kWeightWords = static_cast<int>(core::context_weight_bytes(kChunks)) / 4;
};

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }

template <class T>
__device__ __forceinline__ uint32_t bits_of(T v) {
  uint16_t bits;
  memcpy(&bits, &v, 2);
  return bits;
}

// The rows of this block, and where maps lie in its shared memory: two of its own, read and written in turn, the halo,
// and a chunk of zeros.
template <int kChunks>
struct Maps {
  char* bytes;
  int width, height, line, own_rows, halo_rows;  // line: bytes of a row
  int begin, end;                                // rows of this block

  __device__ __forceinline__ Maps(const ContextArgs& a, char* bytes, int rank)
      : bytes(bytes),
        width(a.width),
        height(a.height),
        line(a.width * Shape<kChunks>::kPitch),
        own_rows(a.rows),
        halo_rows(a.halo),
        begin(smaller(rank * a.rows, a.height)),
        end(smaller((rank + 1) * a.rows, a.height)) {}

  __device__ __forceinline__ int own(int which) const { return which * own_rows * line; }
  __device__ __forceinline__ int halo() const { return 2 * own_rows * line; }
  __device__ __forceinline__ int zeros() const { return halo() + 2 * halo_rows * line; }
  __device__ __forceinline__ int pixels() const { return (end - begin) * width; }
  // Rows from others on either side; slot i of the halo has row halo_row(i), above and then below.
  __device__ __forceinline__ int beyond(int dilation) const { return smaller(dilation, end - begin); }
  __device__ __forceinline__ int halo_row(int slot, int dilation) const {
    const int n = beyond(dilation);
    return slot < n ? begin - dilation + slot : end + dilation - 2 * n + slot;
  }
  // Where a row that a tap reads begins, or -1 outside of the image.
  __device__ __forceinline__ int find(int row, int which, int dilation) const {
    if (row < 0 || row >= height) return -1;
    if (row >= begin && row < end) return own(which) + (row - begin) * line;
    const int n = beyond(dilation);
    return halo() + (row < begin ? row - (begin - dilation) : row - (end + dilation - 2 * n)) * line;
  }
};

// Rows [first, first + rows) of the input, in the layout of maps; padded channels are zero.
template <class T, int kChunks>
__device__ void load_rows(const ContextArgs& a, int64_t image, int first, int rows, char* to) {
  constexpr int kPitch = Shape<kChunks>::kPitch, kChannels = Shape<kChunks>::kChannels;
  const T* from = static_cast<const T*>(a.input) + image * a.image_stride + int64_t{first} * a.width * a.pixel_stride;
  const int pixels = rows * a.width;
  const auto move = [&](int pixel, int channel) {
    T v = T(0.0f);
    if (channel < a.channels) v = from[pixel * a.pixel_stride + channel * a.channel_stride];
    *reinterpret_cast<T*>(to + pixel * kPitch + channel * 2) = v;
  };
  // Lanes along what is contiguous.
  if (a.channel_stride == 1) {
#pragma unroll 4
    for (int pixel = warp(); pixel < pixels; pixel += kWarps)
      if (lane() < kChannels) move(pixel, lane());
  } else {
    for (int channel = warp(); channel < kChannels; channel += kWarps)
#pragma unroll 4
      for (int pixel = lane(); pixel < pixels; pixel += 32) move(pixel, channel);
  }
}

template <class T, int kChunks>
__device__ void store_rows(const ContextArgs& a, int64_t image, const Maps<kChunks>& maps, const char* from) {
  T* to = static_cast<T*>(a.output) + image * a.image_stride + int64_t{maps.begin} * a.width * a.pixel_stride;
  const int pixels = maps.pixels();
  const auto move = [&](int pixel, int channel) {
    to[pixel * a.pixel_stride + channel * a.channel_stride] =
        *reinterpret_cast<const T*>(from + pixel * Shape<kChunks>::kPitch + channel * 2);
  };
  if (a.channel_stride == 1) {
    for (int pixel = warp(); pixel < pixels; pixel += kWarps)
      if (lane() < a.channels) move(pixel, lane());
  } else {
    for (int channel = warp(); channel < a.channels; channel += kWarps)
      for (int pixel = lane(); pixel < pixels; pixel += 32) move(pixel, channel);
  }
}

// The two weights that a lane has in a register of an mma's second operand: chunk q of the reduction is channels
// 8 (q % kChunks) and on of tap q / kChunks.
template <class T, int kChunks>
__device__ __forceinline__ uint32_t weight_word(const ContextArgs& a, const ContextLayer& l, int word) {
  const int at = word / 2 % 32, tile = word / 64;
  const int chunk = tile / kChunks * 2 + word % 2, out = tile % kChunks * 8 + at / 4;
  const int tap = chunk / kChunks, in = chunk % kChunks * 8 + at % 4 * 2;
  if (tap >= (l.dilation ? 9 : 1) || out >= a.channels) return 0;
  const T* from = static_cast<const T*>(l.weight) + out * l.out_stride + in * l.in_stride + tap / 3 * l.row_stride +
                  tap % 3 * l.column_stride;
  const uint32_t low = in < a.channels ? bits_of(from[0]) : 0;
  return low | (in + 1 < a.channels ? bits_of(from[l.in_stride]) : 0) << 16;
}

// 16-byte words from shared memory of this cluster's block `rank`, by the threads of a group.
__device__ __forceinline__ void pull(void* to, uint32_t from, int count, int thread, int threads) {
  constexpr int kAtOnce = 4;
  auto* const out = static_cast<uint4*>(to);
  for (int i = thread; i < count; i += kAtOnce * threads) {
    uint4 v[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (i + j * threads < count) v[j] = arch::load_cluster(from + 16 * (i + j * threads));
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (i + j * threads < count) out[i + j * threads] = v[j];
  }
}

// The rows beyond this block's own, a warp each.
template <int kChunks>
__device__ void pull_halo(const Maps<kChunks>& maps, int which, int dilation) {
  const int slots = 2 * maps.beyond(dilation);
  for (int slot = warp(); slot < slots; slot += kWarps) {
    const int row = maps.halo_row(slot, dilation);
    if (row < 0 || row >= maps.height) continue;
    const int owner = row / maps.own_rows;
    const int there = maps.own(which) + (row - owner * maps.own_rows) * maps.line;
    pull(maps.bytes + maps.halo() + slot * maps.line, arch::map_to_rank(maps.bytes + there, owner), maps.line / 16,
         lane(), 32);
  }
}

// One layer for this block's rows, from map `which` and the halo to the other map.
template <class T, int kChunks, int kTaps>
__device__ void multiply(const ContextArgs& a, const ContextLayer& l, const Maps<kChunks>& maps,
                         const uint32_t* weights, int which, bool truncate) {
  using S = Shape<kChunks>;
  constexpr int kSteps = S::steps(kTaps);
  uint2 b[kSteps][kChunks];
#pragma unroll
  for (int i = 0; i < kSteps * kChunks; ++i)
    b[i / kChunks][i % kChunks] = *reinterpret_cast<const uint2*>(weights + (i * 32 + lane()) * 2);
  float bias[kChunks][2];
#pragma unroll
  for (int i = 0; i < 2 * kChunks; ++i) {
    const int channel = i / 2 * 8 + lane() % 4 * 2 + i % 2;
    const bool has = l.bias && channel < a.channels;
    bias[i / 2][i % 2] = has ? static_cast<float>(static_cast<const T*>(l.bias)[channel]) : 0.0f;
  }
  const int pixels = maps.pixels(), second = lane() / 16;
  for (int tile = warp() * kTilePixels; tile < pixels; tile += kWarps * kTilePixels) {
    int from[kFragments][kTaps];
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const int pixel = tile + 16 * f + lane() % 16;
      const int row = pixel / maps.width, x = pixel - row * maps.width;
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        const int dy = kTaps == 1 ? 0 : (tap / 3 - 1) * l.dilation, dx = kTaps == 1 ? 0 : (tap % 3 - 1) * l.dilation;
        const int line = pixel < pixels ? maps.find(maps.begin + row + dy, which, l.dilation) : -1;
        const bool inside = line >= 0 && x + dx >= 0 && x + dx < maps.width;
        from[f][tap] = inside ? line + (x + dx) * S::kPitch : -1;
      }
    }
    float c[kFragments][kChunks][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        // The first half of the lanes points at one chunk, the other at the next.
        const int q0 = 2 * step, q1 = 2 * step + 1;
        const int at0 = from[f][q0 / kChunks], at1 = q1 < kTaps * kChunks ? from[f][q1 / kChunks] : -1;
        const int at = second ? at1 : at0, chunk = second ? q1 % kChunks : q0 % kChunks;
        uint32_t pixels_of[4];
        arch::ldmatrix_x4(pixels_of, maps.bytes + (at < 0 ? maps.zeros() : at + 16 * chunk));
#pragma unroll
        for (int j = 0; j < kChunks; ++j) arch::mma_16<T>(c[f][j], pixels_of, b[step][j].x, b[step][j].y);
      }
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = tile + 16 * f + lane() / 4 + 8 * half;
        if (pixel >= pixels) continue;
        char* to = maps.bytes + maps.own(1 - which) + pixel * S::kPitch + lane() % 4 * 4;
#pragma unroll
        for (int j = 0; j < kChunks; ++j) {
          float u = c[f][j][2 * half] + bias[j][0], v = c[f][j][2 * half + 1] + bias[j][1];
          if (truncate) u = u < 0 ? 0 : u, v = v < 0 ? 0 : v;
          *reinterpret_cast<uint32_t*>(to + 16 * j) = bits_of(static_cast<T>(u)) | bits_of(static_cast<T>(v)) << 16;
        }
      }
  }
}

// Of a block: maps, weights of the layers that it prepares for all, and those of two layers that it has fetched.
template <int kChunks>
struct Layout {
  char* maps;
  uint32_t *prepared, *fetched;

  template <class Arena>
  __device__ __forceinline__ Layout(Arena& arena, const ContextArgs& a, int blocks)
      : maps(arena.template take<char>(16 + 2 * (a.rows + a.halo) * a.width * Shape<kChunks>::kPitch)),
        prepared(arena.template take<uint32_t>((a.layers + blocks - 1) / blocks * Shape<kChunks>::kWeightWords)),
        fetched(arena.template take<uint32_t>(2 * Shape<kChunks>::kWeightWords)) {}
};

template <class T, int kChunks>
__global__ void __launch_bounds__(kThreads, 1) context_module_kernel(const __grid_constant__ ContextArgs a) {
  constexpr int kWords = Shape<kChunks>::kWeightWords;
  const int rank = static_cast<int>(arch::cluster_rank()), blocks = static_cast<int>(arch::cluster_size());
  const int64_t image = static_cast<int64_t>(blockIdx.x) / blocks;
  SharedArena arena;
  const Layout<kChunks> shared(arena, a, blocks);
  const Maps<kChunks> maps(a, shared.maps, rank);
  const int thread = static_cast<int>(threadIdx.x);

  for (int layer = rank; layer < a.layers; layer += blocks)
    for (int word = thread; word < kWords; word += kThreads)
      shared.prepared[layer / blocks * kWords + word] = weight_word<T, kChunks>(a, a.layer[layer], word);
  if (thread < 4) reinterpret_cast<uint32_t*>(maps.bytes + maps.zeros())[thread] = 0;
  load_rows<T, kChunks>(a, image, maps.begin, maps.end - maps.begin, maps.bytes + maps.own(0));
  const auto fetch_weights = [&](int layer) {
    const uint32_t* there = shared.prepared + layer / blocks * kWords;
    pull(shared.fetched + layer % 2 * kWords, arch::map_to_rank(there, layer % blocks), kWords / 4, thread, kThreads);
  };

  arch::cluster_arrive();
  arch::cluster_wait();
  fetch_weights(0);
  for (int layer = 0; layer < a.layers; ++layer) {
    const ContextLayer& l = a.layer[layer];
    const bool last = layer == a.layers - 1;
    pull_halo(maps, layer % 2, l.dilation);
    // Behind it the halo and the weights are there.
    __syncthreads();
    // Nothing is fetched any more: others may end as soon as all have come here.
    if (last) arch::cluster_arrive();
    const uint32_t* weights = shared.fetched + layer % 2 * kWords;
    if (l.dilation) {
      multiply<T, kChunks, 9>(a, l, maps, weights, layer % 2, !last);
    } else {
      multiply<T, kChunks, 1>(a, l, maps, weights, layer % 2, !last);
    }
    if (last) break;
    arch::cluster_arrive();
    // Where the weights of the layer before lay, which everybody here has finished.
    fetch_weights(layer + 1);
    arch::cluster_wait();
  }
  __syncthreads();
  store_rows<T, kChunks>(a, image, maps, maps.bytes + maps.own(a.layers % 2));
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
  Launch l{static_cast<unsigned>(blocks), kThreads, plan.shared_bytes};
  l.cluster = static_cast<unsigned>(plan.cluster);
  if (dtype == ScalarType::BFloat16) return start<BFloat16>(args, l, stream);
  STD_TORCH_CHECK(dtype == ScalarType::Half, "context_module: one launch takes 16-bit types");
  return start<Half>(args, l, stream);
}

}  // namespace atrousops::cuda
