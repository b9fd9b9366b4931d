// The only place that chooses the kernel of a problem, for CPUs, our CUDA kernels and Triton's, with predicted costs
// and the reasons against the others.
// seconds = overhead of a call + floating-point operations / rate + bytes moved / copy rate, with the rates of the
// device. atrousops/dispatch/planner.py is the Python side.
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

// triton: a GPU that uses Triton.
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
  double seconds = 0;  // infinite if it cannot run
  std::string reason;  // why it is not chosen; empty for the chosen one
};

struct Plan {
  std::string kernel, reason;
  double seconds = 0, live_share = 0;
  int64_t regions = 0;
  double dense_flops = 0, bytes_floor = 0;
  int64_t workspace = 0;
  std::vector<Candidate> candidates;
  // The tiling of wgmma's launch, not for a weight gradient.
  std::optional<BoxPlan> boxes;
};

// The accuracy of predictions: ours must be predicted faster than PyTorch's, or one launch than several, by this
// factor.
inline constexpr double kMargin = 0.9;
std::string fixed2(double value);

Plan plan(const Request& request, const Device& device);
// Our kernels that can run a problem, the planned one and the later ones in the list, with the predicted time of each,
// for the forward pass or one gradient.
std::vector<Candidate> runnable(const Request& request, const Device& device);
// The names of the candidate kernels on a device, PyTorch's first.
std::vector<std::string> kernel_names(DeviceKind kind);

// Convolutions of one map: as one launch ("conv_branches"), or separately ("branches") with a launch for each ReLU and
// the concatenation, which includes `others` further channels.
struct BranchesRequest {
  std::vector<Problem> problems;
  int64_t itemsize = 2;
  bool channels_last = false, relu = false;
  int64_t others = 0;
};
Plan plan_branches(const BranchesRequest& request, const Device& device);

// A context module: as one launch, or layer by layer in `by_layers` seconds, which is called only if one launch is
// possible.
struct ContextDecision {
  ContextPlan one;
  double by_layers = 0;
  bool together = false;
  std::string reason;
};
ContextDecision plan_context(const ContextStack& stack, const ContextDevice& device,
                             const std::function<double()>& by_layers);

}  // namespace atrousops::core
