// The steps of a filter over a lattice.
//
// Splatting sums each vertex's rows, listed in `rows`, without atomics: the list is cut into segments of equal length
// whatever vertices lie in them, so that a vertex of a uniform area costs no more than many small ones. A segment
// writes the vertices that it holds whole, and leaves partial sums of the first and last where they continue elsewhere.
#include <utility>

#include "cuda/permutohedral.cuh"
#include "cuda/platform.h"
#include "stable/dispatch.h"

namespace atrousops::cuda {

// Rows of a segment, and how many of them are under way at once.
constexpr int kSegment = 64;
constexpr int kAhead = 4;

template <class T>
__device__ __forceinline__ int64_t vertex_count(const FilterArgs<T>& a) {
  int64_t count = 0;
  for (int64_t n = 0; n < a.images; ++n) count += a.counts[n];
  return count < a.capacity ? count : a.capacity;
}

// vertex_of[rows[i]] for every i: a warp finds the vertex of its first i, and those of the other 31 follow it closely.
template <class T>
__global__ void __launch_bounds__(kFilterThreads) lattice_vertex_of(FilterArgs<T> a, int32_t* vertex_of) {
  const int64_t vertices = vertex_count(a), padded = (a.row_count + 31) / 32 * 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t i = first_index(); i < padded; i += index_step()) {
    const int64_t warp_first = i - lane;
    int64_t low = 0, high = vertices - 1;
    while (low < high) {
      const int64_t middle = low + (high - low + 1) / 2;
      if (a.row_starts[middle] <= warp_first)
        low = middle;
      else
        high = middle - 1;
    }
    // No vertex is without rows, so the next 31 starts are all that can lie within the warp.
    const int32_t start = low + 1 + lane <= vertices ? a.row_starts[low + 1 + lane] : INT32_MAX;
    int passed = 0;
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
      if (__shfl_sync(0xffffffffu, start, passed + step - 1) <= i) passed += step;
    if (i < a.row_count) vertex_of[a.rows[i]] = static_cast<int32_t>(low) + passed;
  }
}

// Partial sums of segment s: of the vertex that it continues, and of the one that goes on behind it.
template <class T>
__device__ __forceinline__ T* partial_of(const FilterArgs<T>& a, T* partial, int64_t replica, int64_t segment,
                                         bool behind) {
  return partial + ((replica * a.segments + segment) * 2 + behind) * a.packs * kPack<T>;
}

template <class T>
__global__ void __launch_bounds__(kFilterThreads)
    lattice_splat(FilterArgs<T> a, const T* values, T* vertices, T* partial) {
  const int64_t width = a.packs * kPack<T>;
  for (int64_t g = first_group(a.lane_bits); g < a.replicas * a.segments; g += group_step(a.lane_bits)) {
    const int64_t replica = g / a.segments, segment = g % a.segments;
    const int64_t first = segment * kSegment, last = first + kSegment < a.row_count ? first + kSegment : a.row_count;
    for (int64_t b = group_lane(a.lane_bits); b < a.packs; b += int64_t{1} << a.lane_bits) {
      const T* from = values + replica * a.pixels * width + b * kPack<T>;
      int64_t v = a.vertex_of[a.rows[first]];
      int64_t begin = a.row_starts[v], end = a.row_starts[v + 1];
      RowPack<T> sum{};
      const auto flush = [&] {
        T* to = begin >= first && end <= last ? vertices + (replica * a.capacity + v) * width
                                              : partial_of(a, partial, replica, segment, begin >= first);
        store_pack(to + b * kPack<T>, sum);
      };
      for (int64_t i = first; i < last; i += kAhead) {
        // Behind the last the last again: loads without a branch between them are under way together.
        int32_t row[kAhead];
        T weight[kAhead];
        RowPack<T> x[kAhead];
#pragma unroll
        for (int u = 0; u < kAhead; ++u) row[u] = a.rows[i + u < last ? i + u : last - 1];
#pragma unroll
        for (int u = 0; u < kAhead; ++u) {
          weight[u] = a.splat_weights[row[u]];
          x[u] = load_pack<T, kPack<T>>(from + row[u] / static_cast<int32_t>(a.corners) * width);
        }
#pragma unroll
        for (int u = 0; u < kAhead; ++u) {
          if (i + u >= last) continue;
          if (i + u == end) {
            flush();
            ++v;
            begin = end;
            end = a.row_starts[v + 1];
            sum = {};
          }
          add_scaled<T>(sum, weight[u], x[u]);
        }
      }
      flush();
    }
  }
}

// Vertices that cross from segment to segment.
template <class T>
__global__ void __launch_bounds__(kFilterThreads, 4) lattice_join(FilterArgs<T> a, T* vertices, T* partial) {
  const int64_t count = vertex_count(a), width = a.packs * kPack<T>;
  for (int64_t g = first_group(a.lane_bits); g < a.replicas * count; g += group_step(a.lane_bits)) {
    const int64_t replica = g / count, v = g % count;
    const int64_t first = a.row_starts[v] / kSegment, last = (a.row_starts[v + 1] - 1) / kSegment;
    if (first == last) continue;
    for (int64_t b = group_lane(a.lane_bits); b < a.packs; b += int64_t{1} << a.lane_bits) {
      auto sum = load_pack<T, kPack<T>>(partial_of(a, partial, replica, first, true) + b * kPack<T>);
#pragma unroll 4
      for (int64_t s = first + 1; s <= last; ++s)
        add_scaled<T>(sum, T(1), load_pack<T, kPack<T>>(partial_of(a, partial, replica, s, false) + b * kPack<T>));
      store_pack(vertices + (replica * a.capacity + v) * width + b * kPack<T>, sum);
    }
  }
}

// One axis: to = factor * each * (v + (n1 + n2) / 2).
template <class T>
__global__ void __launch_bounds__(kFilterThreads)
    lattice_blur(FilterArgs<T> a, int64_t axis, const T* vertices, T* blurred, T factor, const T* each) {
  const int64_t count = vertex_count(a), width = a.packs * kPack<T>;
  const int32_t* neighbours = a.neighbours + axis * a.capacity * 2;
  for (int64_t g = first_group(a.lane_bits); g < a.replicas * count; g += group_step(a.lane_bits)) {
    const int64_t replica = g / count, v = g % count;
    const int64_t n1 = neighbours[2 * v], n2 = neighbours[2 * v + 1];
    for (int64_t b = group_lane(a.lane_bits); b < a.packs; b += int64_t{1} << a.lane_bits) {
      const T* from = vertices + replica * a.capacity * width + b * kPack<T>;
      RowPack<T> sum = load_pack<T, kPack<T>>(from + v * width), near{};
      if (n1 >= 0) near = load_pack<T, kPack<T>>(from + n1 * width);
      if (n2 >= 0) add_scaled<T>(near, T(1), load_pack<T, kPack<T>>(from + n2 * width));
      add_scaled<T>(sum, T(0.5), near);
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) {
        const int64_t c = b * kPack<T> + i;
        sum[i] *= factor * (each == nullptr || c >= a.channels ? T(1) : each[c]);
      }
      store_pack(blurred + (replica * a.capacity + v) * width + b * kPack<T>, sum);
    }
  }
}

// to[output] = factor * sum over inputs of matrix[output][input] * v[input].
template <class T>
__global__ void __launch_bounds__(kFilterThreads)
    lattice_mix(FilterArgs<T> a, const T* vertices, T* mixed, T factor, const T* matrix) {
  const int64_t count = vertex_count(a), width = a.packs * kPack<T>;
  for (int64_t g = first_group(a.lane_bits); g < a.replicas * count; g += group_step(a.lane_bits)) {
    const int64_t at = (g / count * a.capacity + g % count) * width;
    for (int64_t b = group_lane(a.lane_bits); b < a.packs; b += int64_t{1} << a.lane_bits) {
      RowPack<T> sum{};
      for (int64_t c = 0; c < a.channels; ++c) {
        const T value = factor * vertices[at + c];
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) {
          const int64_t output = b * kPack<T> + i;
          if (output < a.channels) sum[i] += matrix[output * a.channels + c] * value;
        }
      }
      store_pack(mixed + at + b * kPack<T>, sum);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kFilterThreads)
    lattice_slice(SliceSource<T> source, int64_t pixels, int lane_bits, T* rows) {
  for (int64_t pixel = first_group(lane_bits); pixel < pixels; pixel += group_step(lane_bits))
    for (int64_t b = group_lane(lane_bits); b < source.packs; b += int64_t{1} << lane_bits) {
      RowPack<T> sum{};
      source.add(pixel, b, sum);
      store_pack(rows + (pixel * source.packs + b) * kPack<T>, sum);
    }
}

template <class T>
void slice_rows(const SliceSource<T>& source, int64_t pixels, T* rows, const Tensor& like) {
  const int bits = lane_bits_for(source.packs);
  launch<lattice_slice<T>>(groups(pixels, bits, like), current_stream(like), source, pixels, bits, rows);
}

LatticeView::LatticeView(const Tensor& splat_weights_, const Tensor& slice_weights_, const Tensor& offsets,
                         const Tensor& neighbours_, const Tensor& row_starts_, const Tensor& rows_,
                         const Tensor& counts_)
    : splat_weights(dense(splat_weights_, false)),
      slice_weights(dense(slice_weights_, false)),
      neighbours(dense(neighbours_, false)),
      row_starts(dense(row_starts_, false)),
      rows(dense(rows_, false)),
      counts(dense(counts_, false)) {
  STD_TORCH_CHECK(offsets.dim() == 3, "lattice: offsets must be (N, P, D + 1); got ", offsets.dim(), " dimensions");
  images = offsets.size(0);
  pixels = offsets.size(1);
  corners = offsets.size(2);
  for (const Tensor* w : {&splat_weights, &slice_weights})
    STD_TORCH_CHECK(w->dim() == 3 && w->size(0) == images && w->size(1) == pixels && w->size(2) == corners &&
                        w->scalar_type() == splat_weights.scalar_type(),
                    "lattice: weights must have the shape of offsets and one dtype");
  for (const Tensor* i : {&offsets, &std::as_const(neighbours), &std::as_const(row_starts), &std::as_const(rows)})
    STD_TORCH_CHECK(i->scalar_type() == ScalarType::Int, "lattice: index tensors must be int32");
  STD_TORCH_CHECK(counts.scalar_type() == ScalarType::Long && counts.numel() == images,
                  "lattice: counts must be int64, one an image");
  STD_TORCH_CHECK(neighbours.dim() == 3 && neighbours.size(0) == corners && neighbours.size(2) == 2,
                  "lattice: neighbours must be (D + 1, M, 2)");
  capacity = neighbours.size(1);
  STD_TORCH_CHECK(row_starts.numel() > capacity, "lattice: row_starts is too short");
  STD_TORCH_CHECK(rows.numel() == offsets.numel(),
                  "lattice: rows must be as many as offsets; a lattice serves the kind of device it was built on");
}

template <class T>
LatticeFilter<T>::LatticeFilter(const LatticeView& lattice, int64_t channels, int64_t replicas, const Tensor& like)
    : lattice_(lattice), stream_(current_stream(like)) {
  const ScalarType compute = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(lattice.splat_weights.scalar_type() == compute,
                  "lattice: weights must have the dtype that values are computed in");
  args_.neighbours = data<int32_t>(lattice.neighbours);
  args_.row_starts = data<int32_t>(lattice.row_starts);
  args_.rows = data<int32_t>(lattice.rows);
  args_.counts = data<int64_t>(lattice.counts);
  args_.splat_weights = data<T>(lattice.splat_weights);
  args_.images = lattice.images;
  args_.pixels = lattice.images * lattice.pixels;
  args_.corners = lattice.corners;
  args_.capacity = lattice.capacity;
  args_.row_count = lattice.rows.numel();
  args_.replicas = replicas;
  args_.channels = channels;
  args_.packs = (channels + kPack<T> - 1) / kPack<T>;
  args_.segments = (args_.row_count + kSegment - 1) / kSegment;
  args_.lane_bits = lane_bits_for(args_.packs);
  const int64_t width = args_.packs * kPack<T>;
  vertex_of_ = empty({args_.row_count}, like, false, ScalarType::Int);
  partial_ = empty({replicas * args_.segments * 2 * width}, like, false, compute);
  for (Tensor& buffer : vertices_) buffer = empty({replicas * args_.capacity * width}, like, false, compute);
  args_.vertex_of = data<int32_t>(vertex_of_);
  launch<lattice_vertex_of<T>>(groups(args_.row_count, 0, like), stream_, args_, mutable_data<int32_t>(vertex_of_));
}

template <class T>
SliceSource<T> LatticeFilter<T>::blur(const T* values, bool reverse, const Gain<T>& gain) {
  const Launch by_segment = groups(args_.replicas * args_.segments, args_.lane_bits, vertex_of_);
  const Launch by_vertex = groups(args_.replicas * args_.capacity, args_.lane_bits, vertex_of_);
  T* from = mutable_data<T>(vertices_[0]);
  T* to = mutable_data<T>(vertices_[1]);
  launch<lattice_splat<T>>(by_segment, stream_, args_, values, from, mutable_data<T>(partial_));
  launch<lattice_join<T>>(by_vertex, stream_, args_, from, mutable_data<T>(partial_));
  const double alpha = 1.0 / (1.0 + 1.0 / static_cast<double>(int64_t{1} << (args_.corners - 1)));
  const T factor = static_cast<T>(gain.factor * alpha);
  for (int64_t j = 0; j < args_.corners; ++j) {
    const bool last = j == args_.corners - 1 && !gain.matrix;
    launch<lattice_blur<T>>(by_vertex, stream_, args_, reverse ? args_.corners - 1 - j : j, from, to,
                            last ? factor : T(1), last ? gain.each : nullptr);
    std::swap(from, to);
  }
  if (gain.matrix) {
    launch<lattice_mix<T>>(by_vertex, stream_, args_, from, to, factor, gain.each);
    std::swap(from, to);
  }
  return {from,        data<T>(lattice_.slice_weights),    args_.vertex_of, args_.pixels, args_.capacity,
          args_.packs, static_cast<int32_t>(args_.corners)};
}

template class LatticeFilter<float>;
template class LatticeFilter<double>;
template void slice_rows(const SliceSource<float>&, int64_t, float*, const Tensor&);
template void slice_rows(const SliceSource<double>&, int64_t, double*, const Tensor&);

}  // namespace atrousops::cuda
