// Which kernel runs a problem, at what predicted cost, and why the others do not.
//
// seconds = overhead of a call + floating-point operations / rate + bytes moved / copy rate. The rates come with the
// device: defaults or measurements, this file does not know. Equal to atrousops/planner.py, which documents the fields.
#pragma once

#include <string>
#include <vector>

#include "core/phases.h"
#include "core/problem.h"

namespace atrousops::core {

// FLOP/s of one thread, or of a whole GPU, down to `wgmma`; then a dilation, a number of axes, bytes/s of the
// machine, and seconds.
struct Rates {
  double aten, aten_far, aten_two, aten_thin, aten_pointwise, aten_weight_grad, aten_weight_grad_odd,
      aten_weight_grad_far;
  double aten_strided, aten_strided_odd, aten_strided_grouped;
  double aten_grouped, aten_grouped_grad;
  double aten_depthwise, aten_depthwise_grad, aten_depthwise_far;
  double gemm, gemm_weight, depthwise, grouped, tensor, wgmma;
  double near, skips, weight_skips, tails, columns, results, pieces, copy, aten_call, our_call, our_region;
};
inline constexpr int kRates = 33;
static_assert(sizeof(Rates) == kRates * sizeof(double));

enum class DeviceKind { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int64_t threads = 1;
  Rates rates{};
  int64_t multiprocessors = 0, shared_memory = 0, capability = 0;  // of a GPU
};

struct Request {
  Problem problem;
  int64_t itemsize = 4;
  bool needs_grad = false;  // weigh forward and both gradients together
  int64_t workspace_limit = int64_t{1} << 31;
};

struct Candidate {
  std::string kernel;
  double seconds = 0;  // infinite if it is not legal
  std::string reason;  // why it does not run; empty for the one that does
};

struct Plan {
  std::string kernel, reason;
  double seconds = 0, live_share = 0;
  int64_t regions = 0;
  double dense_flops = 0, bytes_floor = 0;
  int64_t workspace = 0;
  std::vector<Candidate> candidates;
  std::array<int64_t, 3> tile = {0, 0, 0};
  int64_t split_k = 1, stages = 0, shared_memory = 0;
};

Plan plan(const Request& request, const Device& device);

}  // namespace atrousops::core
