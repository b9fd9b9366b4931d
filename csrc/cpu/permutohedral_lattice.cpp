// permutohedral_lattice: the enclosing vertices of every pixel, numbered by first appearance, and their neighbours.
#include "cpu/permutohedral_lattice.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/permutohedral.h"
#include "stable/implement.h"
#include "stable/tensor.h"

namespace atrousops::cpu {

namespace {

// A multiple of four chunks of some 16 384 pixels, so that two or four workers share them evenly; fewer in small
// images.
int64_t chunk_count(int64_t pixels) {
  const int64_t few = std::max<int64_t>(pixels / 4096, 1);
  return std::min({few, 4 * (pixels / 65536 + 1), int64_t{64}});
}

// Keys numbered by first insertion: open addressing, linear probing. Allocation failure is remembered, not thrown, so
// that it can be used inside parallel_for.
class KeyTable {
 public:
  int32_t insert(uint64_t key) {
    if (2 * size_ >= capacity_ && !grow()) return 0;
    for (uint64_t h = slot(key);; h = (h + 1) & (capacity_ - 1)) {
      if (ids_[h] < 0) {
        ids_[h] = static_cast<int32_t>(size_);
        table_[h] = key;
        keys_[size_] = key;
        return static_cast<int32_t>(size_++);
      }
      if (table_[h] == key) return ids_[h];
    }
  }
  int32_t find(uint64_t key) const {
    if (capacity_ == 0) return -1;
    for (uint64_t h = slot(key);; h = (h + 1) & (capacity_ - 1))
      if (ids_[h] < 0 || table_[h] == key) return ids_[h];
  }
  int64_t size() const { return static_cast<int64_t>(size_); }
  const uint64_t* keys() const { return keys_.get(); }
  bool failed() const { return failed_; }

 private:
  uint64_t slot(uint64_t key) const { return (key * 0x9E3779B97F4A7C15u) >> shift_; }

  bool grow() {
    const uint64_t capacity = capacity_ == 0 ? 4096 : 2 * capacity_;
    std::unique_ptr<uint64_t[]> table(new (std::nothrow) uint64_t[capacity]);
    std::unique_ptr<int32_t[]> ids(new (std::nothrow) int32_t[capacity]);
    std::unique_ptr<uint64_t[]> keys(new (std::nothrow) uint64_t[capacity / 2 + 1]);
    if (failed_ || table == nullptr || ids == nullptr || keys == nullptr) {
      failed_ = true;
      return false;
    }
    std::fill_n(ids.get(), capacity, -1);
    std::copy_n(keys_.get(), size_, keys.get());
    table_ = std::move(table);
    ids_ = std::move(ids);
    keys_ = std::move(keys);
    capacity_ = capacity;
    shift_ = 64 - __builtin_ctzll(capacity);
    for (uint64_t i = 0; i < size_; ++i) {
      uint64_t h = slot(keys_[i]);
      while (ids_[h] >= 0) h = (h + 1) & (capacity_ - 1);
      ids_[h] = static_cast<int32_t>(i);
      table_[h] = keys_[i];
    }
    return true;
  }

  std::unique_ptr<uint64_t[]> table_, keys_;
  std::unique_ptr<int32_t[]> ids_;
  uint64_t size_ = 0, capacity_ = 0;
  int shift_ = 63;
  bool failed_ = false;
};

struct Builder {
  Builder(const Tensor& features, int64_t chunks_);
  void place_pixels();
  void number_vertices();
  void link_neighbours();
  void list_rows();
  void check(const char* phase) const;

  Tensor features;
  int64_t images, dims, pixels, chunks;
  Tensor offsets, weights, neighbours, row_starts, rows, row_bounds, counts;
  std::vector<KeyTable> chunk_tables, image_tables;
  std::vector<int64_t> image_base;
  std::vector<int32_t> row_vertex;
  std::atomic<bool> fits{true};
};

Builder::Builder(const Tensor& features_, int64_t chunks_)
    : features(dense(features_, false)),
      images(features.size(0)),
      dims(features.size(1)),
      pixels(features.size(2)),
      chunks(chunks_),
      chunk_tables(images * chunks),
      image_tables(images),
      image_base(images + 1) {
  const int64_t corners = dims + 1, most = images * pixels * corners;
  const auto ints = [&](const std::vector<int64_t>& size, ScalarType type) {
    return empty(size, features, false, type);
  };
  offsets = ints({images, pixels, corners}, ScalarType::Int);
  weights = empty({images, pixels, corners}, features, false);
  neighbours = ints({corners, most, 2}, ScalarType::Int);
  row_starts = ints({most + 1}, ScalarType::Int);
  rows = ints({most}, ScalarType::Int);
  row_bounds = ints({images * chunks + 1}, ScalarType::Long);
  counts = ints({images}, ScalarType::Long);
}

// Weights, and offsets that count within the chunk.
void Builder::place_pixels() {
  const auto geometry = ATROUSOPS_SELECT(permutohedral_geometry);
  const int64_t corners = dims + 1, item = static_cast<int64_t>(features.element_size());
  parallel_for_flushed(0, images * chunks, chunk_grain(pixels, chunks), [&](int64_t begin, int64_t end) {
    bool ok = true;
    uint64_t keys[kLatticeTile * (kMaxFeatures + 1)];
    for (int64_t c = begin; c < end; ++c) {
      const int64_t n = c / chunks, first = pixels * (c % chunks) / chunks, stop = pixels * (c % chunks + 1) / chunks;
      const PermutohedralGeometryArgs args{
          static_cast<const char*>(features.const_data_ptr()) + n * dims * pixels * item,
          static_cast<char*>(weights.mutable_data_ptr()) + n * pixels * corners * item, features.scalar_type(),
          static_cast<int>(dims), pixels};
      int32_t* out = static_cast<int32_t*>(offsets.mutable_data_ptr()) + (n * pixels + first) * corners;
      for (int64_t p = first; p < stop; p += kLatticeTile) {
        const int64_t tile_end = std::min(p + kLatticeTile, stop), total = (tile_end - p) * corners;
        geometry(args, p, tile_end, keys, &ok);
        for (int64_t i = 0; i < total; ++i)
          // The pixel before it lies in the same simplex more often than not.
          out[i] = i >= corners && keys[i] == keys[i - corners] ? out[i - corners] : chunk_tables[c].insert(keys[i]);
        out += total;
      }
    }
    if (!ok) fits = false;
  });
}

void Builder::number_vertices() {
  int64_t* bounds = mutable_data<int64_t>(row_bounds);
  bounds[0] = 0;
  for (int64_t c = 0; c < images * chunks; ++c) bounds[c + 1] = bounds[c] + chunk_tables[c].size();
  row_vertex.resize(bounds[images * chunks]);
  parallel_for_flushed(0, images, chunk_grain(pixels, 1), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t c = n * chunks; c < (n + 1) * chunks; ++c)
        for (int64_t i = 0; i < chunk_tables[c].size(); ++i)
          row_vertex[bounds[c] + i] = image_tables[n].insert(chunk_tables[c].keys()[i]);
  });
  image_base[0] = 0;
  for (int64_t n = 0; n < images; ++n) {
    image_base[n + 1] = image_base[n] + image_tables[n].size();
    mutable_data<int64_t>(counts)[n] = image_tables[n].size();
  }
  const int64_t corners = dims + 1;
  parallel_for_flushed(0, images * chunks, chunk_grain(pixels, chunks), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t n = c / chunks, first = pixels * (c % chunks) / chunks, stop = pixels * (c % chunks + 1) / chunks;
      for (int64_t i = bounds[c]; i < bounds[c + 1]; ++i) row_vertex[i] += static_cast<int32_t>(image_base[n]);
      int32_t* out = static_cast<int32_t*>(offsets.mutable_data_ptr()) + n * pixels * corners;
      const int32_t base = static_cast<int32_t>(bounds[c]);
      for (int64_t i = first * corners; i < stop * corners; ++i) out[i] += base;
    }
  });
}

void Builder::link_neighbours() {
  const KeyLayout layout(static_cast<int>(dims));
  const int64_t stride = neighbours.size(1);
  int32_t* table = mutable_data<int32_t>(neighbours);
  uint64_t all = 0;
  for (int i = 0; i < dims; ++i) all += layout.unit(i);
  for (int64_t n = 0; n < images; ++n) {
    const KeyTable& vertices = image_tables[n];
    const int64_t base = image_base[n];
    for (int64_t j = 0; j <= dims; ++j) {
      int32_t* links = table + (j * stride + base) * 2;
      std::fill_n(links, 2 * vertices.size(), -1);
      const uint64_t unit = j < dims ? layout.unit(static_cast<int>(j)) : 0;
      parallel_for_flushed(0, vertices.size(), 2048, [&](int64_t begin, int64_t end) {
        for (int64_t v = begin; v < end; ++v) {
          // One step along axis j: + D on coordinate j, - 1 on the others.
          const uint64_t key = vertices.keys()[v];
          const uint64_t step = (key & 7) > 0 ? key - 1 : key + static_cast<uint64_t>(dims) - all;
          const int32_t found = vertices.find(step + unit);
          if (found < 0) continue;
          links[2 * v] = static_cast<int32_t>(base + found);
          links[2 * found + 1] = static_cast<int32_t>(base + v);
        }
      });
    }
  }
}

void Builder::list_rows() {
  const int64_t vertices = image_base[images];
  int32_t* starts = mutable_data<int32_t>(row_starts);
  std::fill_n(starts, vertices + 1, 0);
  for (const int32_t v : row_vertex) ++starts[v + 1];
  for (int64_t v = 0; v < vertices; ++v) starts[v + 1] += starts[v];
  std::vector<int32_t> next(starts, starts + vertices);
  for (size_t r = 0; r < row_vertex.size(); ++r)
    mutable_data<int32_t>(rows)[next[row_vertex[r]]++] = static_cast<int32_t>(r);
}

void Builder::check(const char* phase) const {
  for (const auto* tables : {&chunk_tables, &image_tables})
    for (const KeyTable& t : *tables)
      STD_TORCH_CHECK(!t.failed(), "permutohedral_lattice: out of memory while ", phase);
  if (!fits)
    bad_value("permutohedral_lattice: features must be finite and within ",
              static_cast<int64_t>(KeyLayout(static_cast<int>(dims)).limit() * (dims + 1)), " lattice units for ", dims,
              " of them; divide them by larger standard deviations");
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
  Builder b(features, chunk_count(features.size(2)));
  b.place_pixels();
  b.check("placing pixels");
  b.number_vertices();
  b.check("numbering vertices");
  b.link_neighbours();
  b.list_rows();
  return {b.offsets, b.weights, b.neighbours, b.row_starts, b.rows, b.row_bounds, b.counts};
}

}  // namespace atrousops::cpu

STABLE_TORCH_LIBRARY_IMPL(atrousops, CPU, m) {
  atrousops::implement<"permutohedral_lattice", &atrousops::cpu::permutohedral_lattice, "features">(m);
}
