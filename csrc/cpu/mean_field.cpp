// mean_field: Q <- softmax(scores - sum_k mu_k K_k Q). Each iteration slices, normalises and splats in one pass over
// the pixels, so that Q itself is written once, at the end; mu acts on the lattices' vertices, of which there are
// fewer.
#include "cpu/mean_field.h"

#include <torch/csrc/stable/library.h>

#include <deque>

#include "cpu/parallel.h"
#include "cpu/permutohedral_launch.h"
#include "stable/implement.h"
#include "stable/tensor.h"

namespace atrousops::cpu {

namespace {

constexpr size_t kLatticeTensors = 8;

// All kernels on one image.
class Inference {
 public:
  Inference(const std::deque<LatticeView>& lattices, const std::vector<Tensor>& compatibilities, int64_t n,
            const PermutohedralImage& scores, const PermutohedralImage& q, ScalarType compute, const Tensor& like)
      : lattices_(lattices) {
    const int64_t lanes = kVectorBytes / (compute == ScalarType::Double ? 8 : 4);
    const int64_t vectors = (scores.channels + lanes - 1) / lanes;
    for (size_t k = 0; k < lattices.size(); ++k) {
      const int64_t image = lattices[k].images == 1 ? 0 : n;
      work_.emplace_back(lattices[k], image, 1, scores.channels, compute, LatticeWork::Rows::separate, like);
      work_.back().set_gain(-1.0, &compatibilities[k]);
      kernels_.push_back(work_.back().args);
      first_.push_back(image * scores.pixels);
      first_chunk_.push_back(image * lattices[k].chunks);
    }
    chunks_ = lattices.empty() ? 1 : lattices[0].chunks;
    unary_ = empty({scores.pixels * vectors * lanes}, like, false, compute);
    tiles_ = empty({chunks_ * kPixelTile * vectors * lanes}, like, false, compute);
    tile_bytes_ = kPixelTile * vectors * kVectorBytes;
    args_ = {kernels_.data(),
             first_.data(),
             static_cast<int64_t>(kernels_.size()),
             vectors,
             unary_.mutable_data_ptr(),
             scores,
             q};
  }

  void run(int64_t iterations) {
    for (int64_t i = 0; i <= iterations; ++i) {
      const bool store = i == iterations;
      pass(i == 0, store);
      for (size_t k = 0; k < work_.size() && !store; ++k) work_[k].blur(false);
    }
  }

 private:
  void pass(bool start, bool store) {
    const auto kernel = ATROUSOPS_SELECT(mean_field_pass);
    parallel_for_flushed(0, chunks_, chunk_grain(args_.scores.pixels, chunks_), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        for (size_t k = 0; k < work_.size() && !store; ++k) work_[k].clear_rows(first_chunk_[k] + c);
        kernel(args_, args_.scores.pixels * c / chunks_, args_.scores.pixels * (c + 1) / chunks_, start, store,
               static_cast<char*>(tiles_.mutable_data_ptr()) + c * tile_bytes_);
      }
    });
  }

  const std::deque<LatticeView>& lattices_;
  std::deque<LatticeWork> work_;
  std::vector<PermutohedralArgs> kernels_;
  std::vector<int64_t> first_, first_chunk_;
  int64_t chunks_, tile_bytes_;
  Tensor unary_, tiles_;
  MeanFieldArgs args_;
};

}  // namespace

Tensor mean_field(const Tensor& scores, std::vector<Tensor> lattices, std::vector<Tensor> compatibilities,
                  int64_t iterations) {
  STD_TORCH_CHECK(scores.dim() == 3, "mean_field: scores must be (N, L, P); got ", scores.dim(), " dimensions");
  STD_TORCH_CHECK(iterations >= 0, "mean_field: iterations must be 0 or more; got ", iterations);
  STD_TORCH_CHECK(lattices.size() == kLatticeTensors * compatibilities.size(), "mean_field: lattices must be ",
                  kLatticeTensors, " tensors for each compatibility");
  const bool nhwc = prefers_channels_last(scores);
  const Tensor in = dense(scores, nhwc);
  const ScalarType dtype = in.scalar_type();
  const ScalarType compute = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t images = in.size(0), labels = in.size(1), pixels = in.size(2);
  std::deque<LatticeView> views;
  for (size_t k = 0; k < compatibilities.size(); ++k) {
    const Tensor* t = &lattices[k * kLatticeTensors];
    const LatticeView& view = views.emplace_back(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7]);
    STD_TORCH_CHECK((view.images == 1 || view.images == images) && view.pixels == pixels,
                    "mean_field: lattices must be of 1 or ", images, " images of ", pixels, " pixels; got ",
                    view.images, " of ", view.pixels);
    STD_TORCH_CHECK(view.chunks == views[0].chunks, "mean_field: lattices must be cut into the same chunks");
    Tensor& mu = compatibilities[k] = dense(compatibilities[k], false);
    STD_TORCH_CHECK(mu.scalar_type() == compute && (mu.dim() == 1 || mu.dim() == 2) && mu.size(0) == labels &&
                        mu.size(mu.dim() - 1) == labels,
                    "mean_field: compatibilities must be (L) or (L, L), of the dtype that scores are computed in");
  }
  Tensor q = empty(sizes_of(in), in, nhwc);
  if (q.numel() == 0) return q;
  for (int64_t n = 0; n < images; ++n) {
    const int64_t shift = n * labels * pixels * static_cast<int64_t>(in.element_size());
    const auto image = [&](const Tensor& t) {
      return PermutohedralImage{memory_of(t) + shift, dtype, nhwc, labels, pixels};
    };
    Inference(views, compatibilities, n, image(in), image(q), compute, in).run(iterations);
  }
  return q;
}

}  // namespace atrousops::cpu

STABLE_TORCH_LIBRARY_IMPL(atrousops, CPU, m) {
  atrousops::implement<"mean_field", &atrousops::cpu::mean_field, "scores", "lattices", "compatibilities">(m);
}
