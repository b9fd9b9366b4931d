#include "core/plan.h"

#include <algorithm>
#include <cstdio>

#include "core/checked.h"
#include "core/plan_candidates.h"

namespace atrousops::core {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr int64_t kSmall = 1 << 14;  // elements of input times weight up to which a call is all overhead

// Depthwise calls of any size are planned, because PyTorch's have other overheads.
bool small(const Problem& p) {
  if (one_channel(p)) return false;
  const int64_t read = p.kind == Kind::input_grad ? p.output_elements() : p.input_elements();
  return read <= kSmall && read * std::min(p.weight_elements(), 2 * kSmall) <= kSmall;
}

std::span<const Entry> entries(DeviceKind kind) {
  if (kind == DeviceKind::cpu) return cpu_entries();
  return kind == DeviceKind::cuda ? cuda_entries() : triton_entries();
}

const char* illegal(const Entry& e, const Facts& f, const Device& d, int64_t workspace_limit) {
  if (e.rule == no_rule) return nullptr;
  if (f.crowded) return "a stride that leaves too many phases";
  if (small(f.problem)) return "too small to repay the overhead of an operator";
  if (e.workspace(f, d) > workspace_limit) return "needs more workspace than the limit";
  return e.rule(f.problem, d, f.itemsize);
}

std::vector<Candidate> consider(const Request& q, const Device& d) {
  const Facts facts(q.problem, q.itemsize);
  std::vector<Candidate> all;
  for (const Entry& e : entries(d.kind)) {
    const char* reason = illegal(e, facts, d, q.workspace_limit);
    all.push_back({e.kernel, reason ? kNever : e.seconds(facts, d), reason ? reason : ""});
  }
  if (!q.needs_grad) return all;
  for (const Kind kind : {q.problem.kind == Kind::forward ? Kind::input_grad : Kind::forward, Kind::weight_grad}) {
    const std::vector<Candidate> gradients = consider({q.problem.with(kind), q.itemsize, false, q.workspace_limit}, d);
    // After a forward pass of ours each gradient uses the fastest kernel; after PyTorch's, PyTorch's.
    double best = kNever;
    for (const Candidate& g : gradients) best = std::min(best, g.seconds);
    for (size_t i = 0; i < all.size(); ++i) all[i].seconds += i == 0 ? gradients[0].seconds : best;
  }
  return all;
}

std::string winning_reason(const Candidate& aten, const Candidate& ours, bool ours_wins) {
  if (ours.seconds == kNever) return "aten: no kernel of ours applies";
  const std::string ratio = fixed2(ours.seconds / aten.seconds);
  if (ours_wins) return ours.kernel + ": takes " + ratio + " of the time of aten";
  return "aten: " + ours.kernel + " would take " + ratio + " of its time, and must be under " + fixed2(kMargin) +
         " to be trusted";
}

}  // namespace

std::string fixed2(double value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.2f", value);
  return text;
}

const char* no_rule(const Problem&, const Device&, int64_t) { return nullptr; }
int64_t no_workspace(const Facts&, const Device&) { return 0; }
int64_t packed_weights(const Facts& f, const Device&) { return f.problem.weight_elements() * f.itemsize; }

double loop_seconds(const Facts& f, const Device& d, double rate) {
  return d.rates.our_call + live_flops(f) / (rate * d.threads) + f.bytes_floor / d.rates.copy;
}

double tiled_seconds(const Facts& f, const Device& d, double rate, const Tile& tile) {
  const Problem& p = f.problem;
  const int64_t width = width_and_depth(p).first / p.groups, blocks = ceil_div(width, tile.columns);
  const int64_t written = p.kind == Kind::input_grad ? p.in_positions() : p.out_positions();
  const double positions = std::max(static_cast<double>(p.n) * written, 1.0);
  // Half a tile is lost in each region.
  const double tiles = positions / tile.rows + 0.5 * f.regions;
  double flops = live_flops(f);
  flops *= static_cast<double>(blocks * tile.columns) / std::max<int64_t>(width, 1) * (tiles * tile.rows / positions);
  double used = 1;
  if (p.kind != Kind::weight_grad) {
    const double all = tiles * static_cast<double>(blocks * p.groups * tile.splits);
    used = std::min(1.0, all / std::max<int64_t>(d.multiprocessors, 1));
  }
  return d.rates.our_call + flops / (rate * used) + f.bytes_floor / d.rates.copy;
}

std::vector<std::string> kernel_names(DeviceKind kind) {
  std::vector<std::string> all;
  for (const Entry& e : entries(kind)) all.emplace_back(e.kernel);
  return all;
}

std::vector<Candidate> runnable(const Request& q, const Device& d) {
  const Facts facts(q.problem, q.itemsize);
  std::vector<Candidate> all;
  const std::span<const Entry> known = entries(d.kind);
  for (size_t i = 1; i < known.size(); ++i) {
    const Entry& e = known[i];
    const bool planned = illegal(e, facts, d, q.workspace_limit) == nullptr;
    // On a GPU the operators use the first kernel that can run, starting from a given one.
    const bool behind = d.kind == DeviceKind::cuda && !all.empty() &&
                        can_run(static_cast<CudaKernel>(i - 1), q.problem, q.itemsize, d.math);
    if (planned || behind) all.push_back({e.kernel, e.seconds(facts, d), ""});
  }
  return all;
}

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
  p.workspace = entries(d.kind)[winner].workspace(facts, d);
  for (size_t i = 0; i < p.candidates.size(); ++i)
    if (i != winner && p.candidates[i].reason.empty())
      p.candidates[i].reason = fixed2(p.candidates[i].seconds / p.seconds) + " of the time of " + p.kernel;
  if (p.kernel == "wgmma" && q.problem.kind != Kind::weight_grad)
    p.boxes = plan_boxes({{q.problem}, q.itemsize, d.multiprocessors, d.rates.wgmma});
  return p;
}

}  // namespace atrousops::core
