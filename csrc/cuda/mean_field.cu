// mean_field: Q <- softmax(scores - sum_k mu_k K_k Q). A step slices all lattices, adds the scores and normalises in
// one pass over the pixels; mu acts on the lattices' vertices, of which there are fewer.
#include <cmath>
#include <deque>
#include <limits>
#include <vector>

#include "cuda/permutohedral.cuh"
#include "cuda/platform.h"
#include "cuda/registration.h"
#include "stable/dispatch.h"

namespace atrousops::cuda {

// Lattices that one pass reads; more take more passes.
constexpr int kMaxSources = 4;

template <class T>
struct StepArgs {
  SliceSource<T> sources[kMaxSources];
  int32_t count;
  int64_t pixels, labels, packs;
  int lane_bits;
  const T* base;  // rows: the scores, or what earlier passes added up
  T* q;           // rows
  T lost;         // what a row becomes whose softmax is not a number
};

__device__ __forceinline__ float exponential(float v) { return expf(v); }
__device__ __forceinline__ double exponential(double v) { return exp(v); }

// Over the lanes of a group; all threads of the warp take part.
template <class T, class F>
__device__ __forceinline__ T reduce_group(T v, int lane_bits, const F& f) {
  for (int bits = (1 << lane_bits) / 2; bits > 0; bits /= 2) v = f(v, __shfl_xor_sync(0xffffffffu, v, bits));
  return v;
}

// kInRegisters: a lane has one pack of a row at most. Else it keeps its packs in q between the sweeps over a row.
template <class T, bool kInRegisters>
struct Row {
  const StepArgs<T>& a;
  int64_t pixel;
  bool live;
  int lane;
  RowPack<T> own;

  // f(pack, index of its first label)
  template <class F>
  __device__ __forceinline__ void sweep(const F& f, bool first) {
    if (!live) return;
    for (int64_t b = lane; b < a.packs; b += int64_t{1} << a.lane_bits) {
      const int64_t at = (pixel * a.packs + b) * kPack<T>;
      if (!kInRegisters && !first) own = load_pack<T, kPack<T>>(a.q + at);
      f(own, b);
      if (!kInRegisters) store_pack(a.q + at, own);
    }
  }
  __device__ __forceinline__ void store() {
    if (kInRegisters && live && lane < a.packs) store_pack(a.q + (pixel * a.packs + lane) * kPack<T>, own);
  }
};

// q = base + what the sources hold; with kNormalise its softmax over labels, zero beyond them, or a.lost.
template <class T, bool kInRegisters, bool kNormalise>
__global__ void __launch_bounds__(kFilterThreads) mean_field_step(StepArgs<T> a) {
  const int64_t step = group_step(a.lane_bits);
  const int64_t in_warp = 32 >> a.lane_bits;
  for (int64_t pixel = first_group(a.lane_bits); pixel / in_warp * in_warp < a.pixels; pixel += step) {
    Row<T, kInRegisters> row{a, pixel, pixel < a.pixels, group_lane(a.lane_bits), {}};
    T top = -std::numeric_limits<T>::infinity();
    row.sweep(
        [&](RowPack<T>& v, int64_t b) {
          v = load_pack<T, kPack<T>>(a.base + (pixel * a.packs + b) * kPack<T>);
#pragma unroll
          for (int k = 0; k < kMaxSources; ++k)
            if (k < a.count) a.sources[k].add(pixel, b, v);
#pragma unroll
          for (int i = 0; i < kPack<T>; ++i)
            if (b * kPack<T> + i < a.labels && v[i] > top) top = v[i];
        },
        true);
    if constexpr (kNormalise) {
      top = reduce_group(top, a.lane_bits, [](T x, T y) { return x > y ? x : y; });
      T sum = 0;
      row.sweep(
          [&](RowPack<T>& v, int64_t b) {
#pragma unroll
            for (int i = 0; i < kPack<T>; ++i) {
              v[i] = b * kPack<T> + i < a.labels ? exponential(v[i] - top) : T(0);
              sum += v[i];
            }
          },
          false);
      sum = reduce_group(sum, a.lane_bits, [](T x, T y) { return x + y; });
      const bool is_lost = sum != sum;
      const T inverse = T(1) / sum;
      row.sweep(
          [&](RowPack<T>& v, int64_t b) {
#pragma unroll
            for (int i = 0; i < kPack<T>; ++i)
              v[i] = is_lost ? (b * kPack<T> + i < a.labels ? a.lost : T(0)) : v[i] * inverse;
          },
          false);
    }
    row.store();
  }
}

namespace {

template <class T>
class Inference {
 public:
  Inference(const std::deque<LatticeView>& lattices, const std::vector<Tensor>& compatibilities, const Tensor& in)
      : stream_(current_stream(in)) {
    const int64_t images = in.size(0), labels = in.size(1), pixels = images * in.size(2);
    packs_ = (labels + kPack<T> - 1) / kPack<T>;
    for (size_t k = 0; k < lattices.size(); ++k) {
      filters_.emplace_back(lattices[k], labels, images / lattices[k].images, in);
      gains_.push_back({-1.0, data<T>(compatibilities[k]), compatibilities[k].dim() == 2});
    }
    unary_ = rows_like(in, pixels);
    q_ = rows_like(in, pixels);
    args_.pixels = pixels;
    args_.labels = labels;
    args_.packs = packs_;
    args_.lane_bits = lane_bits_for(packs_);
    args_.q = mutable_data<T>(q_);
  }

  void run(const Tensor& scores, bool nhwc, int64_t iterations, Tensor& out) {
    to_rows<T>(scores, nhwc, mutable_data<T>(unary_));
    step({}, iterations == 0);
    for (int64_t i = 0; i < iterations; ++i) {
      std::vector<SliceSource<T>> sources;
      for (size_t k = 0; k < filters_.size(); ++k) sources.push_back(filters_[k].blur(args_.q, false, gains_[k]));
      step(sources, i + 1 == iterations);
    }
    from_rows<T>(args_.q, out, nhwc);
  }

 private:
  Tensor rows_like(const Tensor& in, int64_t pixels) const {
    return empty({pixels * packs_ * kPack<T>}, in, false, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
  }

  // A pixel that is lost sends no message, and is NaN in the end.
  void step(const std::vector<SliceSource<T>>& sources, bool last) {
    args_.lost = last ? std::numeric_limits<T>::quiet_NaN() : T(0);
    args_.base = data<T>(unary_);
    size_t done = 0;
    do {
      args_.count = 0;
      while (args_.count < kMaxSources && done < sources.size()) args_.sources[args_.count++] = sources[done++];
      if (packs_ <= int64_t{1} << args_.lane_bits)
        pass<true>(done == sources.size());
      else
        pass<false>(done == sources.size());
      args_.base = args_.q;
    } while (done < sources.size());
  }

  template <bool kInRegisters>
  void pass(bool normalise) {
    const Launch grid = groups(args_.pixels, args_.lane_bits, q_);
    if (normalise)
      launch<mean_field_step<T, kInRegisters, true>>(grid, stream_, args_);
    else
      launch<mean_field_step<T, kInRegisters, false>>(grid, stream_, args_);
  }

  Stream stream_;
  std::deque<LatticeFilter<T>> filters_;
  std::vector<Gain<T>> gains_;
  int64_t packs_;
  Tensor unary_, q_;
  StepArgs<T> args_{};
};

}  // namespace

Tensor mean_field(const Tensor& scores, std::vector<Tensor> lattices, std::vector<Tensor> compatibilities,
                  int64_t iterations) {
  constexpr size_t kLatticeTensors = 8;
  STD_TORCH_CHECK(scores.dim() == 3, "mean_field: scores must be (N, L, P); got ", scores.dim(), " dimensions");
  STD_TORCH_CHECK(iterations >= 0, "mean_field: iterations must be 0 or more; got ", iterations);
  STD_TORCH_CHECK(lattices.size() == kLatticeTensors * compatibilities.size(), "mean_field: lattices must be ",
                  kLatticeTensors, " tensors for each compatibility");
  const DeviceGuard guard(scores);
  const bool nhwc = prefers_channels_last(scores);
  const Tensor in = dense(scores, nhwc);
  const bool is_double = in.scalar_type() == ScalarType::Double;
  const int64_t images = in.size(0), labels = in.size(1), pixels = in.size(2);
  std::deque<LatticeView> views;
  for (size_t k = 0; k < compatibilities.size(); ++k) {
    const Tensor* t = &lattices[k * kLatticeTensors];
    const LatticeView& view = views.emplace_back(t[0], t[1], t[2], t[3], t[4], t[5], t[7]);
    STD_TORCH_CHECK((view.images == 1 || view.images == images) && view.pixels == pixels,
                    "mean_field: lattices must be of 1 or ", images, " images of ", pixels, " pixels; got ",
                    view.images, " of ", view.pixels);
    Tensor& mu = compatibilities[k] = dense(compatibilities[k], false);
    STD_TORCH_CHECK(mu.scalar_type() == (is_double ? ScalarType::Double : ScalarType::Float) &&
                        (mu.dim() == 1 || mu.dim() == 2) && mu.size(0) == labels && mu.size(mu.dim() - 1) == labels,
                    "mean_field: compatibilities must be (L) or (L, L), of the dtype that scores are computed in");
  }
  Tensor q = empty(sizes_of(in), in, nhwc);
  if (q.numel() == 0) return q;
  if (is_double)
    Inference<double>(views, compatibilities, in).run(in, nhwc, iterations, q);
  else
    Inference<float>(views, compatibilities, in).run(in, nhwc, iterations, q);
  return q;
}

}  // namespace atrousops::cuda

ATROUSOPS_CUDA_LIBRARY(m) {
  atrousops::implement<"mean_field", &atrousops::cuda::mean_field, "scores", "lattices", "compatibilities">(m);
}
