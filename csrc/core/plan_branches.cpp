#include <algorithm>

#include "core/plan_candidates.h"

namespace atrousops::core {
namespace {

constexpr size_t kMost = 6;  // convolutions of one launch: csrc/cuda/conv_wgmma.h's kMostBranches

std::string refusal(const BranchesRequest& q, const Device& d) {
  if (d.kind != DeviceKind::cuda) return "one launch is for GPUs of compute capability 9.0, by the compiled planner";
  if (q.problems.size() < 2 || q.problems.size() > kMost)
    return "one launch takes 2 to " + std::to_string(kMost) + " convolutions";
  for (const Problem& p : q.problems)
    if (p.k != q.problems[0].k) return "one launch takes convolutions to equally many channels";
  for (const Problem& p : q.problems)
    if (const char* why = why_not(CudaKernel::wgmma, p, q.itemsize, d.math)) return why;
  return "";
}

// Sums over the convolutions, and bytes.
struct Sums {
  double seconds = 0, flops = 0, live_flops = 0;
  double written, beside, read;  // bytes of their results, of what stands beside those, and of the input
  double moved;                  // every tensor once
};

Sums add_up(const BranchesRequest& q, const Device& d, Plan& p) {
  Sums s;
  int64_t outputs = 0, channels = 0;
  for (const Problem& each : q.problems) {
    const Plan one = plan({each, q.itemsize}, d);
    outputs += each.output_elements();
    channels += each.k;
    s.seconds += one.seconds;
    s.flops += one.dense_flops;
    s.live_flops += one.dense_flops * one.live_share;
    p.bytes_floor += one.bytes_floor;
    p.regions += one.regions;
    p.workspace = std::max(p.workspace, one.workspace);
  }
  s.written = static_cast<double>(outputs) * q.itemsize;
  s.beside = s.written / channels * q.others;
  s.read = static_cast<double>(q.problems[0].input_elements()) * q.itemsize;
  p.bytes_floor -= static_cast<double>(q.problems.size() - 1) * s.read;
  s.moved = p.bytes_floor;
  p.dense_flops = s.flops;
  p.live_share = s.flops > 0 ? s.live_flops / s.flops : 1;
  return s;
}

double apart_seconds(const BranchesRequest& q, const Rates& r, const Sums& s) {
  const double launches = static_cast<double>(q.relu ? q.problems.size() + 1 : 1);
  return s.seconds + launches * r.aten_call + 2 * ((q.relu ? s.written : 0) + s.written + s.beside) / r.copy;
}

double one_seconds(const BranchesRequest& q, const Rates& r, const Sums& s, double boxes) {
  double one = r.our_call + boxes + s.moved / r.copy;
  one += (q.others > 0 ? r.aten_call : 0) + 2 * s.beside / r.copy;
  if (!q.channels_last) one += 2 * r.aten_call + 2 * (s.read + s.written + s.beside) / r.copy;
  return one;
}

}  // namespace

Plan plan_branches(const BranchesRequest& q, const Device& d) {
  Plan p;
  const Sums sums = add_up(q, d, p);
  const double apart = apart_seconds(q, d.rates, sums);
  double one = Rates::kUnlimited;
  std::string why = refusal(q, d), ratio;
  if (why.empty()) {
    p.boxes = plan_boxes({q.problems, q.itemsize, d.multiprocessors, d.rates.wgmma});
    one = one_seconds(q, d.rates, sums, p.boxes->seconds);
    ratio = fixed2(one / apart);
    if (one / apart >= kMargin)
      why =
          "one launch would take " + ratio + " of their time, and must be under " + fixed2(kMargin) + " to be trusted";
  }
  const bool together = why.empty();
  if (!together) p.boxes.reset();
  p.kernel = together ? "conv_branches" : "branches";
  p.seconds = together ? one : apart;
  p.reason = together ? "one launch of " + std::to_string(q.problems.size()) + " convolutions: predicted " + ratio +
                            " of their time one by one"
                      : "branch by branch: " + why;
  p.candidates = {{"branches", apart, ""}, {"conv_branches", one, why}};
  return p;
}

}  // namespace atrousops::core
