// Which kernel runs a problem, at what predicted cost, and why the others do not: the one place where that is decided,
// for CPUs, for our CUDA kernels and for Triton's.
//
// seconds = overhead of a call + floating-point operations / rate + bytes moved / copy rate. The rates come with the
// device. atrousops/dispatch/planner.py shows the answers.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/boxes.h"
#include "core/context.h"
#include "core/cuda_kernels.h"
#include "core/problem.h"
#include "core/rates.h"

namespace atrousops::core {

// triton: a GPU that Triton serves.
enum class DeviceKind { cpu, cuda, triton };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int64_t threads = 1;
  Rates rates{};
  // Of a GPU.
  int64_t multiprocessors = 0;
  CudaMath math{};
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
  // How wgmma's launch is cut; a weight gradient has another kernel.
  std::optional<BoxPlan> boxes;
};

// Ours must be predicted this much faster than PyTorch's, or one launch than several: predictions are not better.
inline constexpr double kMargin = 0.9;
std::string fixed2(double value);

Plan plan(const Request& request, const Device& device);
// The kernels of ours that can run a problem, the one that is planned and those behind it in the list, with what each
// is predicted to take, forward or one gradient alone.
std::vector<Candidate> runnable(const Request& request, const Device& device);
// The names of the kernels that are considered on a device, PyTorch's first.
std::vector<std::string> kernel_names(DeviceKind kind);

// Convolutions of one map: as one launch ("conv_branches"), or one by one ("branches") with a launch for each ReLU and
// the concatenation, to which `others` channels are added.
struct BranchesRequest {
  std::vector<Problem> problems;
  int64_t itemsize = 2;
  bool channels_last = false, relu = false;
  int64_t others = 0;
};
Plan plan_branches(const BranchesRequest& request, const Device& device);

// A context module: as one launch, or layer by layer, which takes `by_layers` seconds; that is asked only where one
// launch is possible.
struct ContextDecision {
  ContextPlan one;
  double by_layers = 0;
  bool together = false;
  std::string reason;
};
ContextDecision plan_context(const ContextStack& stack, const ContextDevice& device,
                             const std::function<double()>& by_layers);

}  // namespace atrousops::core
