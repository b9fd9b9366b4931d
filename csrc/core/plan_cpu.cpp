// The candidates on a CPU.
#include "core/gemm_rows.h"
#include "core/plan_candidates.h"

namespace atrousops::core {
namespace {

constexpr int64_t kLanes = 16;                // a GEMM computes output channels in blocks of this many
constexpr int64_t kPanel = int64_t{5} << 20;  // bytes of scratch of one thread

// Each rule returns why the kernel cannot run the problem, or null.
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

// The overhead of the GEMM calls, for one thread's share. Counted as for 16 bits: fp32 has more calls, but with almost
// no overhead.
double calls_seconds(const Facts& f, const Device& d) {
  const Problem& p = f.problem;
  if (d.rates.our_gemm == 0 || p.kind == Kind::weight_grad || f.rows == 0) return 0;
  const auto [width, depth] = width_and_depth(p);
  const double written = static_cast<double>(p.kind == Kind::input_grad ? p.in_positions() : p.out_positions());
  const double columns = static_cast<double>(width) * written / f.rows;  // of all phases that share a row
  const double bytes = (f.pairs / f.rows * depth + std::min<double>(columns, kGemmColumns)) * f.itemsize;
  const double tasks = static_cast<double>(p.n) * f.rows / rows_of_16_bits(static_cast<int64_t>(bytes));
  const double calls = f.blocks + tasks * std::max(1.0, columns / kGemmColumns);
  return d.rates.our_gemm * calls / static_cast<double>(d.threads);
}

double gemm_seconds(const Facts& f, const Device& d) {
  const Problem& p = f.problem;
  const auto [width, depth] = width_and_depth(p);
  double flops = live_flops(f);
  flops *= static_cast<double>((width + kLanes - 1) / kLanes * kLanes) / std::max<int64_t>(width, 1);
  double rate = d.rates.gemm;
  if (p.kind == Kind::weight_grad) {
    rate = d.rates.gemm_weight;
    flops *= static_cast<double>((depth + kLanes - 1) / kLanes * kLanes) / std::max<int64_t>(depth, 1);
  }
  const double gathered = static_cast<double>(p.n) * depth * f.itemsize * f.pairs;
  const double overhead = d.rates.our_call + d.rates.our_region * f.regions + calls_seconds(f, d);
  const double moving = depth % kLanes != 0 ? std::min(d.rates.pieces, d.rates.copy) : d.rates.copy;
  return overhead + flops / (rate * d.threads) + (f.bytes_floor + gathered) / moving;
}
double depthwise_seconds(const Facts& f, const Device& d) {
  const Problem& p = f.problem;
  const Axis& row = p.axis[kAxes - 1];
  const auto width = static_cast<double>(std::max<int64_t>(p.kind == Kind::input_grad ? row.in : row.out, 1));
  const double rate = d.rates.depthwise * std::min(1.0, width / d.rates.depthwise_row);
  return loop_seconds(f, d, rate) - d.rates.our_call + d.rates.our_depthwise_call;
}
double grouped_seconds(const Facts& f, const Device& d) { return loop_seconds(f, d, d.rates.grouped); }

int64_t weights_and_panels(const Facts& f, const Device& d) { return packed_weights(f, d) + d.threads * kPanel; }

// regions    one gathered GEMM per live region
// phases     the same per residue of the written position: no multiplication by the zeros a stride inserts
// depthwise  a loop over taps, vectorised along channels or pixels
// grouped    the same for groups of few channels
constexpr Entry kCpu[] = {
    kAten,
    {"regions", regions_rule, gemm_seconds, weights_and_panels},
    {"phases", phases_rule, gemm_seconds, weights_and_panels},
    {"depthwise", depthwise_rule, depthwise_seconds, packed_weights},
    {"grouped", grouped_rule, grouped_seconds, packed_weights},
};

}  // namespace

std::span<const Entry> cpu_entries() { return kCpu; }

}  // namespace atrousops::core
