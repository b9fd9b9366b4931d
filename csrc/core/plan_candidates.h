// Private to the planner: the candidates of each kind of device, and their common rules and predictions.
#pragma once

#include <algorithm>
#include <span>

#include "core/plan.h"

namespace atrousops::core {

// The most phases of an axis for which a problem is planned: each takes microseconds, and no network has such strides.
inline constexpr int64_t kMostPhases = 1024;

// Properties of a problem for predictions, computed once for all candidates.
struct Facts {
  const Problem& problem;
  int64_t itemsize, regions = 1;
  std::array<double, kAxes> live;  // live share of each axis
  double pairs = 1;                // (position, tap) pairs that a GEMM gathers
  double rows = 1, blocks = 1;     // positions that it gathers, and boxes of them
  double bytes_floor;
  bool crowded = false;  // an axis has too many phases, so the rest is unknown

  Facts(const Problem& p, int64_t itemsize) : problem(p), itemsize(itemsize) {
    for (int i = 0; i < kAxes; ++i) {
      if (phase_count(p.kind, p.axis[i]) > kMostPhases) {
        crowded = true;
        live[i] = 1;
        continue;
      }
      int64_t live_pairs = 0, segments = 0;
      const std::vector<AxisPhase> phases = axis_phases(p.kind, p.axis[i]);
      for (const AxisPhase& phase : phases) {
        live_pairs += phase.live_pairs();
        segments += static_cast<int64_t>(phase.segments.size());
      }
      live[i] = static_cast<double>(live_pairs) / (static_cast<double>(p.axis[i].out) * p.axis[i].kernel);
      const Gathered once = gathered(phases);
      pairs *= static_cast<double>(once.pairs);
      rows *= static_cast<double>(once.rows);
      blocks *= static_cast<double>(once.blocks);
      regions *= segments;
    }
    bytes_floor = static_cast<double>(p.input_elements() + p.output_elements() + p.weight_elements()) * itemsize;
  }
};

inline bool strided(const Problem& p) {
  return p.kind == Kind::input_grad &&
         std::any_of(p.axis.begin(), p.axis.end(), [](const Axis& a) { return a.stride > 1; });
}

inline bool one_channel(const Problem& p) { return p.groups > 1 && p.groups == p.c; }

// The channels of the result and of the sum, (width, depth), over all groups.
inline std::pair<int64_t, int64_t> width_and_depth(const Problem& p) {
  return p.kind == Kind::input_grad ? std::pair{p.c, p.k} : std::pair{p.k, p.c};
}

// Operations excluding multiplications by padding.
inline double live_flops(const Facts& f) { return f.problem.dense_flops() * (f.live[0] * f.live[1] * f.live[2]); }

struct Entry {
  const char* kernel;
  const char* (*rule)(const Problem&, const Device&, int64_t itemsize);  // why it cannot run the problem, or null
  double (*seconds)(const Facts&, const Device&);
  int64_t (*workspace)(const Facts&, const Device&);
};
std::span<const Entry> cpu_entries();
std::span<const Entry> cuda_entries();
std::span<const Entry> triton_entries();

// PyTorch's own kernel, the first of each.
double aten_seconds(const Facts& f, const Device& d);
const char* no_rule(const Problem&, const Device&, int64_t);
int64_t no_workspace(const Facts&, const Device&);
inline constexpr Entry kAten = {"aten", no_rule, aten_seconds, no_workspace};

// Common to kernels of several devices: a loop over live taps; a GEMM in tiles, with losses at the edges of regions;
// reordered weights.
double loop_seconds(const Facts& f, const Device& d, double rate);
struct Tile {
  int64_t rows, columns, splits;  // splits: blocks that may share a sum
};
double tiled_seconds(const Facts& f, const Device& d, double rate, const Tile& tile);
int64_t packed_weights(const Facts& f, const Device&);

}  // namespace atrousops::core
