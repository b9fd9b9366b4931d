#include "core/plan.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include "core/plan_candidates.h"

namespace atrousops::core {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kMargin = 0.9;               // ours must be predicted this much faster: predictions are not better
constexpr int64_t kLanes = 16;                // a GEMM computes output channels in blocks of this many
constexpr double kColumns = 16 << 20;         // bytes of the columns of a weight gradient that the cache holds
constexpr int64_t kRows = 512 << 10;          // bytes of rows of an image that the L2 cache holds
constexpr int64_t kThinWidth = 32;            // channels below which oneDNN was slow to sum over positions
constexpr int64_t kPage = 4 << 10;            // that lie a multiple of so many bytes apart
constexpr int64_t kPanel = int64_t{5} << 20;  // bytes of scratch of one thread
constexpr int64_t kSmall = 1 << 14;           // elements of input times weight up to which a call is all overhead

bool small(const Problem& p) {
  const int64_t read = p.kind == Kind::input_grad ? p.output_elements() : p.input_elements();
  return read <= kSmall && read * std::min(p.weight_elements(), 2 * kSmall) <= kSmall;
}

// Each rule answers why the kernel cannot run the problem, or null.
const char* depthwise_rule(const Problem& p, const Device&, int64_t) {
  return one_channel(p) ? nullptr : "not one channel a group";
}
const char* grouped_rule(const Problem& p, const Device&, int64_t) {
  return p.groups > 1 && !one_channel(p) ? nullptr : "not several channels a group";
}
const char* phases_rule(const Problem& p, const Device&, int64_t) {
  if (p.groups > 1) return "more than one group";
  return strided(p) ? nullptr : "no input gradient or transposed convolution with a stride";
}
const char* regions_rule(const Problem& p, const Device&, int64_t) {
  if (p.groups > 1) return "more than one group";
  return strided(p) ? "a stride makes it a case for phases" : nullptr;
}

bool any_axis(const Problem& p, const auto& f) { return std::any_of(p.axis.begin(), p.axis.end(), f); }

bool thin(const Problem& p, int64_t itemsize) {
  const auto [width, depth] = width_and_depth(p);
  return p.groups == 1 && width < kThinWidth && depth * itemsize % kPage == 0;
}

// Where the dilated kernel is larger than the image, oneDNN's weight gradients were slow and left nothing out.
bool beyond_image(const Problem& p) {
  return any_axis(p, [](const Axis& a) { return a.dilation * (a.kernel - 1) >= a.in; });
}

// Along how many axes PyTorch leaves out the taps outside of the image.
int skipped_axes(const Problem& p, const Rates& r) {
  if (p.groups > 1) return 0;
  if (p.kind == Kind::weight_grad) return beyond_image(p) ? 0 : static_cast<int>(r.weight_skips);
  return static_cast<int>(r.skips);
}

// oneDNN keeps little padding in registers, has no dilated gradients, and weight gradients of small filters only.
bool far_depthwise(const Problem& p, const Rates& r) {
  if (p.kind == Kind::forward) return static_cast<double>(p.axis[kAxes - 1].pad_lo) > r.near;
  const bool large = p.kind == Kind::weight_grad && any_axis(p, [](const Axis& a) { return a.kernel > 3; });
  return large || any_axis(p, [](const Axis& a) { return a.kernel > 1 && a.dilation > 1; });
}

double aten_grouped_rate(const Problem& p, const Rates& r) {
  const bool forward = p.kind == Kind::forward;
  if (p.groups != p.c) {
    const double rate = forward ? r.aten_grouped : r.aten_grouped_grad;
    return strided(p) ? std::min(rate, r.aten_strided_grouped) : rate;
  }
  if (strided(p)) return r.aten_strided_grouped;
  if (far_depthwise(p, r)) return r.aten_depthwise_far;
  return forward ? r.aten_depthwise : r.aten_depthwise_grad;
}

// oneDNN's blocked kernels take whole blocks of 8 channels; the rest goes to a plainer loop.
bool odd_channels(const Problem& p) { return p.c / p.groups % 8 != 0 || p.k / p.groups % 8 != 0; }

// Dilation 2, and more rows under the filter than the L2 cache holds: oneDNN was slow there, and not at 1, 3, 4, 8.
bool crowded(const Problem& p, int64_t itemsize) {
  const Axis &rows = p.axis[1], &columns = p.axis[2];
  const int64_t position = p.kind == Kind::forward ? columns.in * p.c : columns.out * p.k;
  return rows.dilation == 2 && (2 * rows.kernel - 1) * position * itemsize > kRows;
}

double aten_rate(const Facts& f, const Rates& r) {
  const Problem& p = f.problem;
  const bool odd = odd_channels(p);
  if (p.groups > 1 && odd) return aten_grouped_rate(p, r);
  if (strided(p)) return odd ? r.aten_strided_odd : r.aten_strided;
  if (p.kind == Kind::weight_grad) {
    const double rate = odd ? r.aten_weight_grad_odd : r.aten_weight_grad;
    return beyond_image(p) ? std::min(rate, r.aten_weight_grad_far) : rate;
  }
  if (p.kernel_positions() == 1) return r.aten_pointwise;
  const bool far = any_axis(p, [&](const Axis& a) { return a.kernel > 1 && static_cast<double>(a.dilation) > r.near; });
  const double rate = far ? r.aten_far : crowded(p, f.itemsize) ? r.aten_two : r.aten;
  return thin(p, f.itemsize) ? std::min(rate, r.aten_thin) : rate;
}

// Seconds in which PyTorch brings an operand into the order that its kernel wants, where that counts.
double repacking(const Facts& f, const Device& d) {
  const Problem& p = f.problem;
  if (p.groups > 1) return p.groups == p.c && p.c % 8 != 0 ? f.bytes_floor / d.rates.tails : 0;
  if (strided(p)) return static_cast<double>(p.input_elements()) * f.itemsize / d.rates.results;
  if (p.kind != Kind::weight_grad || !odd_channels(p)) return 0;
  const double image = static_cast<double>(p.c * p.kernel_positions()) * f.itemsize * p.out_positions();
  const double at_once = static_cast<double>(std::min(p.n, d.threads));
  const double rounds = static_cast<double>((p.n + d.threads - 1) / d.threads);
  return std::max(0.0, image * at_once - kColumns) * rounds / d.rates.columns;
}

}  // namespace

const char* no_rule(const Problem&, const Device&, int64_t) { return nullptr; }

double aten_seconds(const Facts& f, const Device& d) {
  const Rates& r = d.rates;
  double flops = f.problem.dense_flops();
  const int skipped = std::min(skipped_axes(f.problem, r), kAxes);
  for (int i = 0; i < skipped; ++i) flops *= f.live[i];
  const double seconds = r.aten_call + flops / (aten_rate(f, r) * d.threads) + f.bytes_floor / r.copy;
  return seconds + repacking(f, d);
}

static double loop_seconds(const Facts& f, const Device& d, double rate) {
  const double flops = f.problem.dense_flops() * (f.live[0] * f.live[1] * f.live[2]);
  return d.rates.our_call + flops / (rate * d.threads) + f.bytes_floor / d.rates.copy;
}
double depthwise_seconds(const Facts& f, const Device& d) { return loop_seconds(f, d, d.rates.depthwise); }
double grouped_seconds(const Facts& f, const Device& d) { return loop_seconds(f, d, d.rates.grouped); }

int64_t no_workspace(const Facts&, const Device&) { return 0; }
int64_t packed_weights(const Facts& f, const Device&) { return f.problem.weight_elements() * f.itemsize; }
namespace {

double gemm_seconds(const Facts& f, const Device& d) {
  const Problem& p = f.problem;
  const auto [width, depth] = width_and_depth(p);
  double flops = p.dense_flops() * (f.live[0] * f.live[1] * f.live[2]);
  flops *= static_cast<double>((width + kLanes - 1) / kLanes * kLanes) / std::max<int64_t>(width, 1);
  double rate = d.rates.gemm;
  if (p.kind == Kind::weight_grad) {
    rate = d.rates.gemm_weight;
    flops *= static_cast<double>((depth + kLanes - 1) / kLanes * kLanes) / std::max<int64_t>(depth, 1);
  }
  const double gathered = static_cast<double>(p.n) * depth * f.itemsize * f.pairs;
  const double overhead = d.rates.our_call + d.rates.our_region * f.regions;
  const double moving = depth % kLanes != 0 ? std::min(d.rates.pieces, d.rates.copy) : d.rates.copy;
  return overhead + flops / (rate * d.threads) + (f.bytes_floor + gathered) / moving;
}

int64_t weights_and_panels(const Facts& f, const Device& d) { return packed_weights(f, d) + d.threads * kPanel; }

constexpr Entry kCpu[] = {
    {"aten", no_rule, aten_seconds, no_workspace},
    {"regions", regions_rule, gemm_seconds, weights_and_panels},
    {"phases", phases_rule, gemm_seconds, weights_and_panels},
    {"depthwise", depthwise_rule, depthwise_seconds, packed_weights},
    {"grouped", grouped_rule, grouped_seconds, packed_weights},
};

std::span<const Entry> entries(const Device& d) { return d.kind == DeviceKind::cpu ? cpu_entries() : cuda_entries(); }

const char* why_not(const Entry& e, const Facts& f, const Device& d, int64_t workspace_limit) {
  if (e.rule == no_rule) return nullptr;
  if (small(f.problem)) return "too small to repay the overhead of an operator";
  if (e.workspace(f, d) > workspace_limit) return "needs more workspace than the limit";
  return e.rule(f.problem, d, f.itemsize);
}

std::vector<Candidate> consider(const Request& q, const Device& d) {
  const Facts facts(q.problem, q.itemsize);
  std::vector<Candidate> all;
  for (const Entry& e : entries(d)) {
    const char* reason = why_not(e, facts, d, q.workspace_limit);
    all.push_back({e.kernel, reason ? kNever : e.seconds(facts, d), reason ? reason : ""});
  }
  if (!q.needs_grad) return all;
  for (const Kind kind : {q.problem.kind == Kind::forward ? Kind::input_grad : Kind::forward, Kind::weight_grad}) {
    const std::vector<Candidate> gradients = consider({q.problem.with(kind), q.itemsize, false, q.workspace_limit}, d);
    // Behind a forward pass of ours each gradient takes the fastest kernel; behind PyTorch's, PyTorch's.
    double best = kNever;
    for (const Candidate& g : gradients) best = std::min(best, g.seconds);
    for (size_t i = 0; i < all.size(); ++i) all[i].seconds += i == 0 ? gradients[0].seconds : best;
  }
  return all;
}

std::string fixed2(double v) {
  char text[64];
  std::snprintf(text, sizeof text, "%.2f", v);
  return text;
}

std::string winning_reason(const Candidate& aten, const Candidate& ours, bool ours_wins) {
  if (ours.seconds == kNever) return "aten: no kernel of ours applies";
  const std::string ratio = fixed2(ours.seconds / aten.seconds);
  if (ours_wins) return ours.kernel + ": takes " + ratio + " of the time of aten";
  return "aten: " + ours.kernel + " would take " + ratio + " of its time, and must be under " + fixed2(kMargin) +
         " to be trusted";
}

}  // namespace

std::span<const Entry> cpu_entries() { return kCpu; }

Plan plan(const Request& q, const Device& d) {
  const Facts facts(q.problem, q.itemsize);
  Plan p;
  p.candidates = consider(q, d);
  const auto ours = std::min_element(p.candidates.begin() + 1, p.candidates.end(),
                                     [](const Candidate& a, const Candidate& b) { return a.seconds < b.seconds; });
  const bool ours_wins = ours->seconds < kMargin * p.candidates[0].seconds;
  const size_t winner = ours_wins ? ours - p.candidates.begin() : 0;
  p.kernel = p.candidates[winner].kernel;
  p.reason = winning_reason(p.candidates[0], *ours, ours_wins);
  p.seconds = p.candidates[winner].seconds;
  p.live_share = facts.live[0] * facts.live[1] * facts.live[2];
  p.regions = facts.regions;
  p.dense_flops = q.problem.dense_flops();
  p.bytes_floor = facts.bytes_floor;
  p.workspace = entries(d)[winner].workspace(facts, d);
  for (size_t i = 0; i < p.candidates.size(); ++i)
    if (i != winner && p.candidates[i].reason.empty())
      p.candidates[i].reason = fixed2(p.candidates[i].seconds / p.seconds) + " of the time of " + p.kernel;
  return p;
}

}  // namespace atrousops::core
