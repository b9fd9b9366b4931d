// permutohedral_lattice: the enclosing vertices of every pixel, found by sorting their keys, and their neighbours.
//
// Every pixel has a row of its own for each of its D + 1 vertices: row = pixel * (D + 1) + corner. `rows` lists them by
// vertex, and within one in the order of pixels, which is all that a splat without atomics needs. Vertices are numbered
// by image, then by key.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "cuda/device_algorithms.h"
#include "cuda/launch.h"
#include "cuda/platform.h"
#include "cuda/registration.h"
#include "cuda/rounded.h"
#include "cuda/runtime.h"
#include "stable/dispatch.h"

namespace atrousops::cuda {

// D coordinates and the remainder share 64 bits.
constexpr int kMaxFeatures = 7;
constexpr int kLatticeThreads = 256;

// A vertex's coordinates are all congruent modulo D + 1: x_i = (D + 1) q_i + r. The key holds r in its three lowest
// bits and the biased q_i above them, so that a step along the lattice is one addition.
struct LatticeKey {
  int features, bits;
  uint64_t bias, all;  // all: one step of every q_i

  explicit LatticeKey(int features) : features(features), bits(std::min((64 - 3) / features, 31)), all(0) {
    bias = uint64_t{1} << (bits - 1);
    for (int i = 0; i < features; ++i) all += uint64_t{1} << (3 + i * bits);
  }
  __device__ __forceinline__ uint64_t unit(int i) const {
    return i < features ? uint64_t{1} << (3 + i * bits) : uint64_t{0};
  }
  // One step along axis j: + D on coordinate j, - 1 on the others; and back.
  __device__ __forceinline__ uint64_t forth(uint64_t key, int j) const {
    return ((key & 7) > 0 ? key - 1 : key + static_cast<uint64_t>(features) - all) + unit(j);
  }
  __device__ __forceinline__ uint64_t back(uint64_t key, int j) const {
    return ((key & 7) < static_cast<uint64_t>(features) ? key + 1 : key - static_cast<uint64_t>(features) + all) -
           unit(j);
  }
};

template <class T>
struct PlaceArgs {
  const T* features;  // (N, D, P)
  int64_t pixels, total;
  LatticeKey key;
  T scale[kMaxFeatures + 1];
  T limit;  // of an elevated coordinate
  T* weights;
  int32_t* offsets;
  uint64_t* keys;
  int32_t* misfits;
};

// Adding and subtracting this rounds to nearest even, as long as |v| is far below it.
template <class T>
constexpr T kRoundingShift = sizeof(T) == 4 ? T(12582912) : T(6755399441055744.0);

// The nearest vertex of remainder 0 in units of D + 1, each coordinate's rank by its distance from it, and the
// distance.
template <class T, int D>
struct Simplex {
  T rounded[D + 1], rest[D + 1];
  int32_t rank[D + 1];

  // y = E p (page 5 of the paper). False where a coordinate exceeds the key or is not finite; the pixel then lies at
  // the origin.
  __device__ __forceinline__ bool elevate(const PlaceArgs<T>& a, const T* feature) {
    T sum = 0;
#pragma unroll
    for (int j = D; j > 0; --j) {
      const T v = rounded_product(feature[(j - 1) * a.pixels], a.scale[j]);
      rest[j] = sum - rounded_product(T(j), v);
      sum += v;
    }
    rest[0] = sum;
    bool fits = true;
#pragma unroll
    for (int i = 0; i <= D; ++i) fits = fits && rest[i] <= a.limit && rest[i] >= -a.limit;
#pragma unroll
    for (int i = 0; i <= D; ++i) rest[i] = fits ? rest[i] : T(0);
    return fits;
  }

  __device__ __forceinline__ void round() {
    int32_t sum = 0;
#pragma unroll
    for (int i = 0; i <= D; ++i) {
      const T v = (rounded_product(T(1) / T(D + 1), rest[i]) + kRoundingShift<T>)-kRoundingShift<T>;
      rounded[i] = v;
      rest[i] -= rounded_product(v, T(D + 1));
      sum += static_cast<int32_t>(v);
      rank[i] = 0;
    }
#pragma unroll
    for (int i = 0; i < D; ++i)
#pragma unroll
      for (int j = i + 1; j <= D; ++j) {
        const int32_t below = rest[i] < rest[j];
        rank[i] += below;
        rank[j] += 1 - below;
      }
    // Off the plane by `sum` steps: move the coordinates of the extreme ranks back.
#pragma unroll
    for (int i = 0; i <= D; ++i) {
      const int32_t r = rank[i] + sum;
      const int32_t step = (r < 0) - (r > D);
      rank[i] = r + step * (D + 1);
      rounded[i] += T(step);
      rest[i] -= T(step) * T(D + 1);
    }
  }

  // The coordinate of this rank, in units of D + 1, and a step of its key. Compares rather than indexes, so that all
  // stays in registers.
  __device__ __forceinline__ T of_rank(int r, const LatticeKey& key, uint64_t& unit) const {
    T value = 0;
#pragma unroll
    for (int i = 0; i <= D; ++i)
      if (rank[i] == r) {
        value = rounded_product(rest[i], T(1) / T(D + 1));
        unit = key.unit(i);
      }
    return value;
  }
};

// A thread for each pixel, in the order of operations of Kraehenbuehl's densecrf.
template <class T, int D>
__global__ void __launch_bounds__(kLatticeThreads) lattice_place(PlaceArgs<T> a) {
  for (int64_t p = first_index(); p < a.total; p += index_step()) {
    Simplex<T, D> s;
    const int64_t image = p / a.pixels;
    if (!s.elevate(a, a.features + image * D * a.pixels + p % a.pixels)) atomicOr(a.misfits, 1);
    s.round();
    uint64_t key = 0, unit = 0;
#pragma unroll
    for (int i = 0; i < D; ++i)
      key += (static_cast<uint64_t>(static_cast<int64_t>(s.rounded[i])) + a.key.bias) * a.key.unit(i);
    const T first = s.of_rank(0, a.key, unit);
    T above = s.of_rank(D, a.key, unit);
    T weight = above + (T(1) - first);
#pragma unroll
    for (int r = 0; r <= D; ++r) {
      const int64_t row = p * (D + 1) + r;
      if (r > 0) {
        // `unit` is still that of rank D - r + 1.
        key += 1 - unit;
        const T next = s.of_rank(D - r, a.key, unit);
        weight = next - above;
        above = next;
      }
      a.weights[row] = weight;
      a.keys[row] = key;
      a.offsets[row] = static_cast<int32_t>(row);
    }
  }
}

__global__ void __launch_bounds__(kLatticeThreads)
    lattice_images(const int32_t* rows, int64_t count, int64_t rows_per_image, uint32_t* images) {
  for (int64_t i = first_index(); i < count; i += index_step())
    images[i] = static_cast<uint32_t>(rows[i] / rows_per_image);
}

__global__ void __launch_bounds__(kLatticeThreads)
    lattice_gather_keys(const uint64_t* keys, const int32_t* rows, int64_t count, uint64_t* sorted) {
  for (int64_t i = first_index(); i < count; i += index_step()) sorted[i] = keys[rows[i]];
}

// 1 where a vertex begins.
__global__ void __launch_bounds__(kLatticeThreads)
    lattice_heads(const uint64_t* sorted, int64_t count, int64_t rows_per_image, int32_t* heads) {
  for (int64_t i = first_index(); i < count; i += index_step())
    heads[i] = i % rows_per_image == 0 || sorted[i] != sorted[i - 1] ? 1 : 0;
}

// numbers[i] is how many vertices have begun at row i. Fills image_ends with the vertices up to each image's end.
__global__ void __launch_bounds__(kLatticeThreads)
    lattice_number(const uint64_t* sorted, const int32_t* numbers, int64_t count, int64_t rows_per_image,
                   int32_t* row_starts, uint64_t* vertex_keys, int32_t* image_ends) {
  for (int64_t i = first_index(); i < count; i += index_step()) {
    const int32_t number = numbers[i];
    if (i == 0 || number != numbers[i - 1]) {
      row_starts[number - 1] = static_cast<int32_t>(i);
      vertex_keys[number - 1] = sorted[i];
    }
    if ((i + 1) % rows_per_image == 0) image_ends[i / rows_per_image] = number;
    if (i + 1 == count) row_starts[number] = static_cast<int32_t>(count);
  }
}

// A misfit shows as -1 in the last of row_bounds, which is read together with the number of rows.
__global__ void __launch_bounds__(kLatticeThreads)
    lattice_count(const int32_t* image_ends, const int32_t* misfits, int64_t images, int64_t pixels, int64_t corners,
                  int64_t chunks, int64_t* row_bounds, int64_t* counts) {
  const int64_t bounds = images * chunks;
  for (int64_t i = first_index(); i <= bounds; i += index_step()) {
    row_bounds[i] = (i / chunks * pixels + i % chunks * pixels / chunks) * corners;
    if (i == bounds && *misfits != 0) row_bounds[i] = -1;
    if (i < images) counts[i] = image_ends[i] - (i > 0 ? image_ends[i - 1] : 0);
  }
}

// The index of `key` among keys[begin, end), ascending, or -1.
__device__ __forceinline__ int32_t find_key(const uint64_t* keys, int32_t begin, int32_t end, uint64_t key) {
  const int32_t last = end;
  while (begin < end) {
    const int32_t middle = begin + (end - begin) / 2;
    if (keys[middle] < key)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin < last && keys[begin] == key ? begin : -1;
}

// A thread for each vertex and axis; only the device knows how many vertices there are.
__global__ void __launch_bounds__(kLatticeThreads)
    lattice_link(LatticeKey key, const uint64_t* vertex_keys, const int32_t* image_ends, int64_t images, int64_t stride,
                 int32_t* neighbours) {
  const int64_t vertices = image_ends[images - 1];
  for (int64_t i = first_index(); i < vertices * (key.features + 1); i += index_step()) {
    const int64_t v = i % vertices;
    const int axis = static_cast<int>(i / vertices);
    int64_t image = 0;
    while (image_ends[image] <= v) ++image;
    const int32_t begin = image > 0 ? image_ends[image - 1] : 0, end = image_ends[image];
    int32_t* links = neighbours + (axis * stride + v) * 2;
    links[0] = find_key(vertex_keys, begin, end, key.forth(vertex_keys[v], axis));
    links[1] = find_key(vertex_keys, begin, end, key.back(vertex_keys[v], axis));
  }
}

namespace {

// As csrc/cpu cuts an image; here a chunk bounds nothing, but every lattice says what it was cut into.
int64_t chunk_count(int64_t pixels) {
  const int64_t few = std::max<int64_t>(pixels / 4096, 1);
  return std::min({few, 4 * (pixels / 65536 + 1), int64_t{64}});
}

struct Builder {
  Builder(const Tensor& features_)
      : features(dense(features_, false)),
        images(features.size(0)),
        pixels(features.size(2)),
        corners(features.size(1) + 1),
        count(images * pixels * corners),
        chunks(chunk_count(pixels)),
        key(static_cast<int>(corners) - 1),
        stream(current_stream(features)) {
    offsets = make({images, pixels, corners}, ScalarType::Int);
    weights = empty({images, pixels, corners}, features, false);
    neighbours = make({corners, count, 2}, ScalarType::Int);
    row_starts = make({count + 1}, ScalarType::Int);
    rows = make({count}, ScalarType::Int);
    row_bounds = make({images * chunks + 1}, ScalarType::Long);
    counts = make({images}, ScalarType::Long);
    image_ends = make({images}, ScalarType::Int);
    misfits = make({1}, ScalarType::Int);
    torch::stable::zero_(misfits);
    torch::stable::zero_(image_ends);
  }

  Tensor make(const std::vector<int64_t>& size, ScalarType type) const { return empty(size, features, false, type); }
  Tensor make_keys() const { return make({count}, ScalarType::Long); }
  static uint64_t* keys_of(const Tensor& t) { return static_cast<uint64_t*>(t.mutable_data_ptr()); }
  static Launch grid(int64_t items) { return {blocks_for(items, kLatticeThreads), kLatticeThreads}; }

  template <class T, int D>
  void place(const Tensor& keys);
  template <class T>
  void place(const Tensor& keys);
  void sort(const Tensor& keys, Tensor& sorted);
  void build();

  Tensor features;
  int64_t images, pixels, corners, count, chunks;
  LatticeKey key;
  Stream stream;
  Tensor offsets, weights, neighbours, row_starts, rows, row_bounds, counts, image_ends, misfits;
};

template <class T, int D>
void Builder::place(const Tensor& keys) {
  PlaceArgs<T> a{data<T>(features), pixels, images * pixels, key, {}, {}, {}, {}, {}, {}};
  const float deviation = static_cast<float>(std::sqrt(2.0 / 3.0) * (D + 1));
  for (int j = 1; j <= D; ++j)
    a.scale[j] = sizeof(T) == 4 ? static_cast<T>(1.0 / std::sqrt((j + 1.0) * j) * deviation)
                                : static_cast<T>(1.0 / std::sqrt((j + 1.0) * j) * std::sqrt(2.0 / 3.0) * (D + 1));
  // Room for a neighbour's step; beyond a quarter of the shift rounding by it fails.
  const double most = std::min(static_cast<double>(key.bias - 2), static_cast<double>(kRoundingShift<T>) / 4);
  a.limit = static_cast<T>(most * (D + 1));
  a.weights = mutable_data<T>(weights);
  a.offsets = mutable_data<int32_t>(offsets);
  a.keys = keys_of(keys);
  a.misfits = mutable_data<int32_t>(misfits);
  launch<lattice_place<T, D>>(grid(images * pixels), stream, a);
}

template <class T>
void Builder::place(const Tensor& keys) {
  switch (corners - 1) {
    case 1: return place<T, 1>(keys);
    case 2: return place<T, 2>(keys);
    case 3: return place<T, 3>(keys);
    case 4: return place<T, 4>(keys);
    case 5: return place<T, 5>(keys);
    case 6: return place<T, 6>(keys);
    case 7: return place<T, 7>(keys);
  }
}

// By key, and then by image: both sorts are stable.
void Builder::sort(const Tensor& keys, Tensor& sorted) {
  const int bits = 3 + (static_cast<int>(corners) - 1) * key.bits;
  if (images == 1)
    return sort_pairs(features, stream, keys_of(keys), keys_of(sorted), data<int32_t>(offsets),
                      mutable_data<int32_t>(rows), count, bits);
  Tensor by_key = make({count}, ScalarType::Int);
  sort_pairs(features, stream, keys_of(keys), keys_of(sorted), data<int32_t>(offsets), mutable_data<int32_t>(by_key),
             count, bits);
  const Tensor image = make({count}, ScalarType::Int), sorted_image = make({count}, ScalarType::Int);
  const auto words = [](const Tensor& t) { return static_cast<uint32_t*>(t.mutable_data_ptr()); };
  launch<lattice_images>(grid(count), stream, data<int32_t>(by_key), count, pixels * corners, words(image));
  int image_bits = 1;
  while ((images - 1) >> image_bits > 0) ++image_bits;
  sort_pairs(features, stream, words(image), words(sorted_image), data<int32_t>(by_key), mutable_data<int32_t>(rows),
             count, image_bits);
  launch<lattice_gather_keys>(grid(count), stream, keys_of(keys), data<int32_t>(rows), count, keys_of(sorted));
}

void Builder::build() {
  const Tensor keys = make_keys();
  Tensor sorted = make_keys(), numbers = make({count}, ScalarType::Int);
  if (features.scalar_type() == ScalarType::Double)
    place<double>(keys);
  else
    place<float>(keys);
  sort(keys, sorted);
  const int64_t rows_per_image = pixels * corners;
  int32_t* number = mutable_data<int32_t>(numbers);
  launch<lattice_heads>(grid(count), stream, keys_of(sorted), count, rows_per_image, number);
  inclusive_sum(features, stream, number, number, count);
  // The unsorted keys are no longer needed: their memory takes those of the vertices.
  launch<lattice_number>(grid(count), stream, keys_of(sorted), number, count, rows_per_image,
                         mutable_data<int32_t>(row_starts), keys_of(keys), mutable_data<int32_t>(image_ends));
  launch<lattice_link>(grid(count), stream, key, keys_of(keys), data<int32_t>(image_ends), images, neighbours.size(1),
                       mutable_data<int32_t>(neighbours));
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> permutohedral_lattice(const Tensor& features) {
  STD_TORCH_CHECK(features.dim() == 3, "permutohedral_lattice: features must be (N, D, P); got ", features.dim(),
                  " dimensions");
  STD_TORCH_CHECK(features.scalar_type() == ScalarType::Double || features.scalar_type() == ScalarType::Float,
                  "permutohedral_lattice: features must be float64 or float32");
  STD_TORCH_CHECK(features.size(1) >= 1 && features.size(1) <= kMaxFeatures,
                  "permutohedral_lattice: features must have 1 to ", kMaxFeatures, " channels; got ", features.size(1));
  STD_TORCH_CHECK(features.size(0) * features.size(2) * (features.size(1) + 1) < std::numeric_limits<int32_t>::max(),
                  "permutohedral_lattice: features must have fewer than 2^31 / (D + 1) pixels");
  const DeviceGuard guard(features);
  Builder b(features);
  if (b.count > 0)
    b.build();
  else
    torch::stable::zero_(b.row_starts);
  launch<lattice_count>(b.grid(b.row_bounds.numel()), b.stream, data<int32_t>(b.image_ends), data<int32_t>(b.misfits),
                        b.images, b.pixels, b.corners, b.chunks, mutable_data<int64_t>(b.row_bounds),
                        mutable_data<int64_t>(b.counts));
  return {b.offsets, b.weights, b.neighbours, b.row_starts, b.rows, b.row_bounds, b.counts};
}

}  // namespace atrousops::cuda

ATROUSOPS_CUDA_LIBRARY(m) {
  atrousops::implement<"permutohedral_lattice", &atrousops::cuda::permutohedral_lattice, "features">(m);
}
