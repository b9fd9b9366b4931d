// The candidates on a GPU, in the order in which csrc/cuda/conv.cu tries its kernels: whichever of ours is legal is the
// one that would run there.
#include "core/boxes.h"
#include "core/checked.h"
#include "core/plan_candidates.h"
#include "core/weight_boxes.h"

namespace atrousops::core {
namespace {

constexpr int64_t kSplits = 4;  // of a sum among blocks, where tensor cores have too few tiles

// Too few channels a group for a GEMM's tile.
bool few_channels(const Problem& p) { return (p.c / p.groups) * (p.k / p.groups) <= (p.groups > 1 ? 64 : 4); }

bool looped(const Problem& p) { return few_channels(p) && (p.groups > 1 || p.kind != Kind::weight_grad); }

const char* depthwise_rule(const Problem& p, const Device&, int64_t) {
  return one_channel(p) && p.c == p.k ? nullptr : "not one channel in and out a group";
}
const char* grouped_rule(const Problem& p, const Device& d, int64_t itemsize) {
  if (depthwise_rule(p, d, itemsize) == nullptr) return "one channel in and out a group is a case for depthwise";
  return looped(p) ? nullptr : "too many channels a group for a loop";
}
const char* wgmma_rule(const Problem& p, const Device& d, int64_t itemsize) {
  if (d.rates.wgmma <= 0) return "no wgmma for the dtype on the device";
  return p.kind == Kind::weight_grad ? weight_boxes_cannot(p, itemsize) : boxes_cannot(p, itemsize);
}
const char* mma_rule(const Problem& p, const Device& d, int64_t itemsize) {
  if (d.rates.tensor <= 0) return "no tensor cores for the dtype on the device";
  if (wgmma_rule(p, d, itemsize) == nullptr) return "wgmma can run it";
  if (looped(p)) return "few channels a group are a case for a loop";
  const int64_t depth = itemsize == 4 ? 16 : 32;
  const bool shallow = p.kind != Kind::weight_grad && 4 * (width_and_depth(p).second / p.groups) < depth;
  return shallow ? "too few channels for the depth of a step" : nullptr;
}
const char* simt_rule(const Problem& p, const Device& d, int64_t itemsize) {
  if (looped(p)) return "few channels a group are a case for a loop";
  const bool tensor = wgmma_rule(p, d, itemsize) == nullptr || mma_rule(p, d, itemsize) == nullptr;
  return tensor ? "tensor cores can run it" : nullptr;
}

double tiled_seconds(const Facts& f, const Device& d, double rate, int64_t splits) {
  const Problem& p = f.problem;
  const int64_t width = width_and_depth(p).first / p.groups, columns = width <= 32 ? 32 : 64;
  const int64_t rows = columns == 32 ? 128 : 64, blocks = ceil_div(width, columns);
  const int64_t written = p.kind == Kind::input_grad ? p.in_positions() : p.out_positions();
  const double positions = std::max(static_cast<double>(p.n) * written, 1.0);
  // Half a tile is lost in each region.
  const double tiles = positions / rows + 0.5 * f.regions;
  double flops = p.dense_flops() * (f.live[0] * f.live[1] * f.live[2]);
  flops *= static_cast<double>(blocks * columns) / std::max<int64_t>(width, 1) * (tiles * rows / positions);
  double used = 1;
  if (p.kind != Kind::weight_grad)
    used = std::min(1.0,
                    tiles * static_cast<double>(blocks * p.groups * splits) / std::max<int64_t>(d.multiprocessors, 1));
  return d.rates.our_call + flops / (rate * used) + f.bytes_floor / d.rates.copy;
}
double wgmma_seconds(const Facts& f, const Device& d) {
  const Problem& p = f.problem;
  const double work = p.kind == Kind::weight_grad
                          ? plan_weight_boxes(p, d.multiprocessors, d.rates.wgmma).seconds
                          : plan_boxes({{p}, f.itemsize, d.multiprocessors, d.rates.wgmma}).seconds;
  return d.rates.our_call + work + f.bytes_floor / d.rates.copy;
}
double mma_seconds(const Facts& f, const Device& d) { return tiled_seconds(f, d, d.rates.tensor, kSplits); }
double simt_seconds(const Facts& f, const Device& d) { return tiled_seconds(f, d, d.rates.gemm, 1); }

constexpr Entry kCuda[] = {
    {"aten", no_rule, aten_seconds, no_workspace},
    {"depthwise", depthwise_rule, depthwise_seconds, packed_weights},
    {"grouped", grouped_rule, grouped_seconds, packed_weights},
    {"wgmma", wgmma_rule, wgmma_seconds, packed_weights},
    {"mma", mma_rule, mma_seconds, packed_weights},
    {"simt", simt_rule, simt_seconds, packed_weights},
};

}  // namespace

std::span<const Entry> cuda_entries() { return kCuda; }

}  // namespace atrousops::core
