// The context module's maps and weights in the shared memory of a cluster: where they lie, and how they come there.
#pragma once

#include "cuda/arch/cluster.h"
#include "cuda/arch/mbarrier.h"
#include "cuda/context_module.h"
#include "cuda/shared.h"

namespace atrousops::cuda {

// Warps that multiply, and as many that fetch weights for them.
constexpr int kContextWarps = static_cast<int>(core::kContextWarps), kContextThreads = 2 * 32 * kContextWarps;

template <int kChunks>
struct Shape {
  static constexpr int kChannels = 8 * kChunks;
  static constexpr int kPitch = static_cast<int>(core::context_pitch(kChunks));  // bytes of a pixel
  static constexpr int steps(int taps) { return static_cast<int>(core::context_steps(taps, kChunks)); }
  static constexpr int kWeightQuads = static_cast<int>(core::context_weight_bytes(kChunks)) / 16;
};

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int positive(int a) { return a > 0 ? a : 0; }

template <class T>
__device__ __forceinline__ uint32_t bits_of(T v) {
  uint16_t bits;
  memcpy(&bits, &v, 2);
  return bits;
}

// Of tap i, in the order of the reduction: the middle row of the kernel first, then the rows above and below.
__device__ __forceinline__ constexpr int tap_row(int i) { return i / 3 == 0 ? 0 : i / 3 == 1 ? -1 : 1; }
__device__ __forceinline__ constexpr int tap_column(int i) { return i % 3 - 1; }

// Elements 0 .. kCount - 1 of a row, as bits; from `there` on they are zero. Element 0 is loaded in any case: loads
// under a condition would each compute their address anew.
template <int kCount, class T>
__device__ __forceinline__ void gather(uint32_t (&v)[kCount], const T* from, int stride, int there) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) v[j] = bits_of(from[j < there ? j * stride : 0]);
#pragma unroll
  for (int j = 0; j < kCount; ++j) v[j] = j < there ? v[j] : 0;
}

// Copies item i = 0 .. count - 1 by all threads of a group, kAtOnce of a thread at a time: between start and finish its
// loads are under way.
template <int kAtOnce, class Item>
class Copies {
  const Item& item_;
  int count_, next_, threads_;
  uint4 v_[kAtOnce];

 public:
  __device__ __forceinline__ Copies(const Item& item, int count, int thread, int threads)
      : item_(item), count_(count), next_(thread), threads_(threads) {}
  __device__ __forceinline__ void start() {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) v_[j] = item_.load(smaller(next_ + j * threads_, count_ - 1));
  }
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = next_ + j * threads_;
      if (i < count_) item_.store(smaller(i, count_ - 1), v_[j]);
    }
    next_ += kAtOnce * threads_;
  }
  __device__ __forceinline__ void rest() {
    while (next_ < count_) start(), finish();
  }
};

// The rows of this block, and where maps lie in its shared memory: two of its own, read and written in turn, the halo
// of each, and a pixel of zeros.
template <int kChunks>
struct Maps {
  char* bytes;
  int width, height, line, own_rows, halo_rows;  // line: bytes of a row
  int begin, end;                                // rows of this block

  __device__ __forceinline__ Maps(const ContextArgs& a, char* bytes, int rank)
      : bytes(bytes),
        width(a.width.value()),
        height(a.height),
        line(width * Shape<kChunks>::kPitch),
        own_rows(a.rows.value()),
        halo_rows(a.halo),
        begin(smaller(rank * own_rows, height)),
        end(smaller((rank + 1) * own_rows, height)) {}

  __device__ __forceinline__ int own(int which) const { return which * own_rows * line; }
  __device__ __forceinline__ int halo(int which) const { return 2 * (own_rows + which * halo_rows) * line; }
  __device__ __forceinline__ int zeros() const { return 2 * (own_rows + 2 * halo_rows) * line; }
  __device__ __forceinline__ int rows() const { return end - begin; }
  __device__ __forceinline__ int pixels() const { return rows() * width; }
  // Where in a block's halo lies what the tap `dilation` rows above its own row `row` reads, or the one below.
  __device__ __forceinline__ int slot(bool below, int row, int dilation) const {
    return (below ? halo_rows + row - positive(own_rows - dilation) : row) * line;
  }
  // Where a row that a tap of own row `row` reads begins, or -1 outside of the image.
  __device__ __forceinline__ int find(int row, int dy, int which, int dilation) const {
    const int from = begin + row + dy * dilation;
    if (from < 0 || from >= height) return -1;
    if (from >= begin && from < end) return own(which) + (from - begin) * line;
    return halo(which) + slot(dy > 0, row, dilation);
  }
  // Bytes that come from other blocks before a layer.
  __device__ __forceinline__ int expected(int dilation) const {
    const int above = smaller(dilation, rows()) - positive(dilation - begin);
    const int below = smaller(rows(), height - begin - dilation) - positive(rows() - dilation);
    return (positive(above) + positive(below)) * line;
  }
};

// Of a block: maps; barriers for what comes from others; of each layer and own row where the rows that its taps read
// begin (in the order of taps), and who reads it; biases; its share of all layers' weights in the order of their
// fragments, and the weights of two layers.
template <int kChunks>
struct Layout {
  char* maps;
  arch::Mbarrier* full;
  int4* lines;
  uint4* readers;  // two of a line in another block's halo and that block's barrier; barrier 0: nobody
  float* biases;
  int share;  // 16-byte words of a layer
  uint4 *prepared, *fetched;

  template <class Arena>
  __device__ __forceinline__ Layout(Arena& arena, const ContextArgs& a, int blocks)
      : maps(arena.template take<char>((1 + 2 * (a.rows.value() + 2 * a.halo) * a.width.value()) *
                                       Shape<kChunks>::kPitch)),
        full(arena.template take<arch::Mbarrier>(2)),
        lines(arena.template take<int4>(a.layers * a.rows.value())),
        readers(arena.template take<uint4>(a.layers * a.rows.value())),
        biases(arena.template take<float>(a.layers * Shape<kChunks>::kChannels)),
        share((Shape<kChunks>::kWeightQuads + blocks - 1) / blocks),
        prepared(arena.template take<uint4>(a.layers * share)),
        fetched(arena.template take<uint4>(2 * Shape<kChunks>::kWeightQuads)) {}

  __device__ __forceinline__ uint4* weights(int layer) const {
    return fetched + layer % 2 * Shape<kChunks>::kWeightQuads;
  }
};

// The input's rows of this block and those beyond that its first layer reads, in the layout of maps; padded channels
// are zero. An item is a chunk of a pixel; lanes along what is contiguous.
template <class T, int kChunks>
class InputRows {
  const Maps<kChunks>& maps_;
  const T* input_;
  Divisor32 width_;
  int dilation_, beyond_, channels_, channel_stride_, pixel_stride_;
  struct Place {
    int row, to, x, chunk;  // row of the image, byte of the maps
  };
  __device__ __forceinline__ Place place(int i) const {
    const bool nhwc = channel_stride_ == 1;
    int line = nhwc ? i / kChunks : i;
    const int x = width_.split(line), chunk = nhwc ? i % kChunks : line % kChunks;
    if (!nhwc) line /= kChunks;
    const int extra = line - maps_.rows();
    const bool outside = extra >= 0, below = extra >= beyond_;
    const int row = !outside ? line : below ? maps_.rows() - 2 * beyond_ + extra : extra;
    const int to = outside ? maps_.halo(0) + maps_.slot(below, row, dilation_) : maps_.own(0) + row * maps_.line;
    return {maps_.begin + row + (!outside ? 0 : below ? dilation_ : -dilation_), to, x, chunk};
  }

 public:
  __device__ __forceinline__ InputRows(const ContextArgs& a, int64_t image, const Maps<kChunks>& maps)
      : maps_(maps),
        input_(static_cast<const T*>(a.input) + image * a.image_stride),
        width_(a.width),
        dilation_(a.layer[0].dilation),
        beyond_(smaller(dilation_, maps.rows())),
        channels_(a.channels),
        channel_stride_(a.channel_stride),
        pixel_stride_(a.pixel_stride) {}
  __device__ __forceinline__ int count() const { return (maps_.rows() + 2 * beyond_) * maps_.width * kChunks; }
  __device__ __forceinline__ uint4 load(int i) const {
    const Place p = place(i);
    const bool inside = p.row >= 0 && p.row < maps_.height;
    const int channel = 8 * p.chunk;
    const T* at =
        input_ +
        (inside && channel < channels_ ? (p.row * maps_.width + p.x) * pixel_stride_ + channel * channel_stride_ : 0);
    uint32_t v[8];
    gather(v, at, channel_stride_, inside ? channels_ - channel : 0);
    return {v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16};
  }
  __device__ __forceinline__ void store(int i, uint4 v) const {
    const Place p = place(i);
    // Nothing reads what lies outside of the image, and a block alone has no place for it.
    if (p.row < 0 || p.row >= maps_.height) return;
    *reinterpret_cast<uint4*>(maps_.bytes + p.to + p.x * Shape<kChunks>::kPitch + 16 * p.chunk) = v;
  }
};

// A block's share of all layers' weights in the order of an mma's second operand. A lane has in a register two weights:
// chunk q of the reduction is channels 8 (q % kChunks) and on of tap q / kChunks. An item is four registers: of two
// lanes that follow each other, two chunks.
template <class T, int kChunks>
class WeightShare {
  const ContextArgs& a_;
  const Layout<kChunks>& shared_;
  int first_;

 public:
  __device__ __forceinline__ WeightShare(const ContextArgs& a, const Layout<kChunks>& shared, int rank)
      : a_(a), shared_(shared), first_(rank * shared.share) {}
  __device__ __forceinline__ int count() const { return a_.layers * shared_.share; }
  __device__ __forceinline__ uint4 load(int i) const {
    const int layer = i / shared_.share, quad = i - layer * shared_.share + first_;
    const ContextLayer& l = a_.layer[layer];
    const int lane = quad % 16 * 2, tile = quad / 16;
    const int out = tile % kChunks * 8 + lane / 4;
    const T* const weight = static_cast<const T*>(l.weight);
    uint32_t v[2][4];
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const int chunk = tile / kChunks * 2 + q, tap = chunk / kChunks, in = chunk % kChunks * 8 + lane % 4 * 2;
      const bool is_there = tap < (l.dilation ? 9 : 1) && out < a_.channels;
      const int place = l.dilation ? (tap_row(tap) + 1) * l.row_stride + (tap_column(tap) + 1) * l.column_stride : 0;
      const int there = is_there ? a_.channels - in : 0;
      gather(v[q], weight + (there > 0 ? out * l.out_stride + in * l.in_stride + place : 0), l.in_stride, there);
    }
    return {v[0][0] | v[0][1] << 16, v[1][0] | v[1][1] << 16, v[0][2] | v[0][3] << 16, v[1][2] | v[1][3] << 16};
  }
  __device__ __forceinline__ void store(int i, uint4 v) const { shared_.prepared[i] = v; }
};

// A layer's weights from the blocks that prepared them.
template <int kChunks>
class WeightFetch {
  const Layout<kChunks>& shared_;
  int layer_;

 public:
  __device__ __forceinline__ WeightFetch(const Layout<kChunks>& shared, int layer) : shared_(shared), layer_(layer) {}
  __device__ __forceinline__ uint4 load(int i) const {
    const int owner = i / shared_.share;
    const uint4* there = shared_.prepared + layer_ * shared_.share + i - owner * shared_.share;
    return arch::load_cluster(arch::map_to_rank(there, static_cast<unsigned>(owner)));
  }
  __device__ __forceinline__ void store(int i, uint4 v) const { shared_.weights(layer_)[i] = v; }
};

template <int kChunks>
__device__ __forceinline__ void fetch_weights(const Layout<kChunks>& shared, int layer, int thread, int threads) {
  const WeightFetch<kChunks> fetch(shared, layer);
  Copies<6, WeightFetch<kChunks>>(fetch, Shape<kChunks>::kWeightQuads, thread, threads).rest();
}

// What comes from device memory; the first loads of all together.
template <class T, int kChunks>
__device__ __forceinline__ void load_all(const ContextArgs& a, int64_t image, const Maps<kChunks>& maps,
                                         const Layout<kChunks>& shared, int rank) {
  const int thread = static_cast<int>(threadIdx.x);
  const WeightShare<T, kChunks> weights(a, shared, rank);
  const InputRows<T, kChunks> rows(a, image, maps);
  Copies<2, WeightShare<T, kChunks>> first(weights, weights.count(), thread, kContextThreads);
  Copies<5, InputRows<T, kChunks>> second(rows, rows.count(), thread, kContextThreads);
  first.start();
  // Blocks beyond the map have no row.
  if (rows.count() > 0) second.start();
  for (int i = thread; i < a.layers * Shape<kChunks>::kChannels; i += kContextThreads) {
    const int channel = i % Shape<kChunks>::kChannels;
    const auto* bias = static_cast<const T*>(a.layer[i / Shape<kChunks>::kChannels].bias);
    shared.biases[i] = bias && channel < a.channels ? static_cast<float>(bias[channel]) : 0.0f;
  }
  first.finish();
  second.finish();
  first.rest();
  second.rest();
}

// Where the rows of a layer's taps begin, and who reads this block's rows in the next layer, the row's taps above and
// below.
template <int kChunks>
__device__ void find_rows(const ContextArgs& a, const Maps<kChunks>& maps, const Layout<kChunks>& shared, int rank) {
  for (int i = static_cast<int>(threadIdx.x); i < a.layers * maps.own_rows; i += kContextThreads) {
    int layer = i;
    const int row = a.rows.split(layer), dilation = a.layer[layer].dilation;
    shared.lines[i] = {maps.find(row, 0, layer % 2, dilation), maps.find(row, -1, layer % 2, dilation),
                       maps.find(row, 1, layer % 2, dilation), 0};
    uint2 readers[2] = {};
    for (int below = 0; below < 2 && layer + 1 < a.layers; ++below) {
      const int which = (layer + 1) % 2, next = a.layer[layer + 1].dilation;
      const int reader = maps.begin + row + (below ? -next : next);
      if (maps.begin + row >= maps.end || reader < 0 || reader >= maps.height) continue;
      const int owner = a.rows.divide(reader);
      if (owner == rank) continue;
      const char* to = maps.bytes + maps.halo(which) + maps.slot(below, reader - owner * maps.own_rows, next);
      readers[below] = {arch::map_to_rank(to, static_cast<unsigned>(owner)),
                        arch::map_to_rank(shared.full + which, static_cast<unsigned>(owner))};
    }
    shared.readers[i] = {readers[0].x, readers[0].y, readers[1].x, readers[1].y};
  }
}

}  // namespace atrousops::cuda
