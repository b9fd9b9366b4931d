// Common code for running the kernels of roi_align and roi_pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/roi_boxes.h"
#include "cpu/roi_tile.h"

namespace atrousops::cpu {

// Above this size no tile is made, and RoIs read the feature map directly.
constexpr int64_t kMostTileBytes = int64_t{64} << 20;
// The approximate size of the rows of a gradient tile, which stay in the cache while all RoIs add to them.
constexpr int64_t kBandBytes = int64_t{1} << 20;
// The minimum number of elements per worker.
constexpr int64_t kGrain = int64_t{1} << 16;

// A dense 4-D tensor in either order. Strides in elements.
struct Layout {
  Layout(const Tensor& t, bool nhwc)
      : base(memory_of(t)),
        dtype(t.scalar_type()),
        batch(t.size(0)),
        channels(t.size(1)),
        height(t.size(2)),
        width(t.size(3)),
        channel_stride(nhwc ? 1 : height * width),
        pixel_stride(nhwc ? channels : 1),
        element(t.element_size()) {}

  int64_t blocks() const { return (channels + kLanes - 1) / kLanes; }
  void* at(int64_t n, int64_t block) const {
    return base + element * (n * channels * height * width + block * kLanes * channel_stride);
  }

  char* base;
  ScalarType dtype;
  int64_t batch, channels, height, width;
  int64_t channel_stride, pixel_stride, element;
};

// Uninitialised bytes, aligned for any vector.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(static_cast<size_t>(bytes + 63) / 64 + 1) {}
  void* at(int64_t offset) { return reinterpret_cast<char*>(memory_.data()) + offset; }

 private:
  struct alignas(64) Line {
    char bytes[64];
    Line() {}
  };
  std::vector<Line> memory_;
};

inline void widen(Span& span, int64_t begin, int64_t end) {
  if (begin >= end) return;
  span = span.begin == span.end ? Span{begin, end} : Span{std::min(span.begin, begin), std::max(span.end, end)};
}

// Runs a RoI kernel over blocks of channels.
class RoiLaunch {
 public:
  // spans: one per row of every image; reads: pixels read by all RoIs, with repetitions; exact: subnormals are kept.
  RoiLaunch(const Layout& map, const Layout& pooled, const Boxes& boxes, const std::vector<Span>& spans, int64_t reads,
            int64_t scratch_elements, bool exact);

  // kernel(block, rois, begin, end) reads the features and writes the pooled side.
  template <class F>
  void forward(const F& kernel);
  // The backward kernel reads the pooled side and adds to the tile. A worker has a band of rows of a block of channels
  // and adds every RoI to it in order, without atomics, and with the same bits for any number of workers and bands.
  template <class F>
  void backward(const F& kernel);

 private:
  RoiTileArgs tile(int64_t n, int64_t block, void* memory, int64_t first_row) const {
    const int64_t row_stride = map_.width * map_.pixel_stride;
    return {map_.dtype,
            map_.at(n, block),
            map_.channel_stride,
            row_stride,
            map_.pixel_stride,
            lanes(block),
            map_.width,
            spans_.data() + n * map_.height,
            memory,
            first_row};
  }
  int64_t lanes(int64_t block) const { return std::min(kLanes, map_.channels - block * kLanes); }
  int64_t tile_bytes(int64_t rows) const { return rows * map_.width * kLanes * compute_bytes_; }

  // f(worker, begin, end) over items of equal cost; called once per worker.
  template <class F>
  void workers(int64_t items, const F& f) const {
    const int64_t grain = std::clamp<int64_t>(kGrain * items / std::max<int64_t>(cost_, 1), 1, items);
    const int64_t count = std::clamp<int64_t>(items / grain, 1, workers_);
    const auto share = [&](int64_t first, int64_t last) {
      for (int64_t w = first; w < last; ++w) f(w, items * w / count, items * (w + 1) / count);
    };
    if (exact_)
      parallel_for(0, count, 1, share);
    else
      parallel_for(0, count, 1, share);
  }

  const Layout& map_;
  const Layout& pooled_;
  const Boxes& boxes_;
  const std::vector<Span>& spans_;
  bool exact_;
  int64_t compute_bytes_, touched_, reads_, cost_, workers_, scratch_bytes_;
  RoiBlock common_{};
};

inline RoiLaunch::RoiLaunch(const Layout& map, const Layout& pooled, const Boxes& boxes, const std::vector<Span>& spans,
                            int64_t reads, int64_t scratch_elements, bool exact)
    : map_(map),
      pooled_(pooled),
      boxes_(boxes),
      spans_(spans),
      exact_(exact),
      compute_bytes_(map.dtype == ScalarType::Double ? 8 : 4),
      touched_(0),
      reads_(reads),
      workers_(torch::stable::get_num_threads()),
      scratch_bytes_((scratch_elements * compute_bytes_ + 63) / 64 * 64) {
  for (const Span& span : spans) touched_ += span.end - span.begin;
  cost_ = (touched_ + reads_) * map.channels + pooled.batch * pooled.channels * pooled.height * pooled.width;
  common_.dtype = map.dtype;
  common_.roi_stride = pooled.channels * pooled.height * pooled.width;
  common_.channel_stride = pooled.channel_stride;
  common_.bin_stride = pooled.pixel_stride;
  common_.feature_channel_stride = map.channel_stride;
  common_.feature_row_stride = map.width * kLanes;
  common_.feature_pixel_stride = map.pixel_stride;
  common_.width = map.width;
  common_.row_end = map.height;
}

template <class F>
void RoiLaunch::forward(const F& kernel) {
  // Copying is faster if pixels are read more often than they are copied.
  common_.direct = reads_ < touched_ || tile_bytes(map_.height) > kMostTileBytes;
  if (common_.direct) common_.feature_row_stride = map_.width * map_.pixel_stride;
  // Each worker copies the block it reads, so that none waits for another; with few blocks, several workers share the
  // RoIs of one.
  const int64_t blocks = map_.blocks(), parts = (workers_ + map_.batch * blocks - 1) / (map_.batch * blocks);
  const int64_t bytes = common_.direct ? 0 : tile_bytes(map_.height);
  Scratch tiles(workers_ * bytes), scratch(workers_ * scratch_bytes_);
  const auto pack = ATROUSOPS_SELECT(roi_pack);
  workers(map_.batch * blocks * parts, [&](int64_t worker, int64_t begin, int64_t end) {
    RoiBlock b = common_;
    b.scratch = scratch.at(worker * scratch_bytes_);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / (blocks * parts), block = i / parts % blocks, part = i % parts;
      const int64_t rois = boxes_.first[n + 1] - boxes_.first[n];
      const int64_t first = rois * part / parts, last = rois * (part + 1) / parts;
      if (first == last) continue;
      b.lanes = lanes(block);
      b.pooled = pooled_.at(0, block);
      b.feature = b.direct ? map_.at(n, block) : tiles.at(worker * bytes);
      if (!b.direct) pack(tile(n, block, b.feature, 0), 0, map_.height);
      kernel(b, boxes_.by_image.data() + boxes_.first[n], first, last);
    }
  });
}

template <class F>
void RoiLaunch::backward(const F& kernel) {
  const int64_t band = std::clamp<int64_t>(kBandBytes / std::max<int64_t>(tile_bytes(1), 1), 1, map_.height);
  const int64_t blocks = map_.blocks(), bands = (map_.height + band - 1) / band;
  cost_ += map_.batch * map_.channels * map_.height * map_.width;
  Scratch tiles(workers_ * tile_bytes(band)), scratch(workers_ * scratch_bytes_);
  const auto clear = ATROUSOPS_SELECT(roi_clear);
  const auto unpack = ATROUSOPS_SELECT(roi_unpack);
  workers(map_.batch * blocks * bands, [&](int64_t worker, int64_t begin, int64_t end) {
    RoiBlock b = common_;
    b.scratch = scratch.at(worker * scratch_bytes_);
    b.feature = tiles.at(worker * tile_bytes(band));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / (blocks * bands), block = i / bands % blocks;
      b.row_begin = i % bands * band;
      b.row_end = std::min(b.row_begin + band, map_.height);
      b.lanes = lanes(block);
      b.pooled = pooled_.at(0, block);
      const RoiTileArgs t = tile(n, block, b.feature, b.row_begin);
      clear(t, b.row_begin, b.row_end);
      kernel(b, boxes_.by_image.data() + boxes_.first[n], 0, boxes_.first[n + 1] - boxes_.first[n]);
      unpack(t, b.row_begin, b.row_end);
    }
  });
}

}  // namespace atrousops::cpu
