// PyTorch's own kernel: oneDNN's on a CPU, cuDNN's or MIOpen's on a GPU.
#include "core/plan_candidates.h"

namespace atrousops::core {
namespace {

// oneDNN's blocked kernels take whole blocks of 8 channels; the rest goes to a plainer loop.
bool odd_channels(const Problem& p) { return p.c / p.groups % 8 != 0 || p.k / p.groups % 8 != 0; }

// The rate without exceptions.
double Rates::* usual(const Problem& p) {
  const bool forward = p.kind == Kind::forward, odd = odd_channels(p);
  if (p.groups > 1 && odd) {
    if (p.groups != p.c) return forward ? &Rates::aten_grouped : &Rates::aten_grouped_grad;
    if (strided(p)) return &Rates::aten_strided_grouped;
    return forward ? &Rates::aten_depthwise : &Rates::aten_depthwise_grad;
  }
  if (strided(p)) return odd ? &Rates::aten_strided_odd : &Rates::aten_strided;
  if (p.kind == Kind::weight_grad) return odd ? &Rates::aten_weight_grad_odd : &Rates::aten_weight_grad;
  return p.kernel_positions() == 1 ? &Rates::aten_pointwise : &Rates::aten;
}

struct Speed {
  double rate;
  int64_t skips;  // axes along which taps outside of the image are left out
};

Speed speed(const Problem& p, int64_t itemsize, const Rates& r) {
  double Rates::* const of = usual(p);
  Speed s{r.*of, static_cast<int64_t>(p.kind == Kind::weight_grad ? r.weight_skips : r.skips)};
  if (p.groups > 1 && p.groups != p.c && odd_channels(p) && strided(p))
    s.rate = std::min(s.rate, r.aten_strided_grouped);
  for (const Exception& e : r.exceptions) {
    if (e.of != of || !e.holds(p, itemsize)) continue;
    s.rate = std::min(s.rate, e.rate);
    if (e.skips >= 0) s.skips = e.skips;
  }
  if (p.groups > 1) s.skips = 0;
  return s;
}

// Seconds that PyTorch needs to reorder an operand for its kernel, if significant.
double repacking(const Facts& f, const Device& d) {
  const Problem& p = f.problem;
  if (p.groups > 1) return p.groups == p.c && p.c % 8 != 0 ? f.bytes_floor / d.rates.tails : 0;
  if (strided(p)) return static_cast<double>(p.input_elements()) * f.itemsize / d.rates.results;
  if (p.kind != Kind::weight_grad || !odd_channels(p)) return 0;
  const double image = static_cast<double>(p.c * p.kernel_positions()) * f.itemsize * p.out_positions();
  const double at_once = static_cast<double>(std::min(p.n, d.threads));
  const double rounds = static_cast<double>((p.n + d.threads - 1) / d.threads);
  return std::max(0.0, image * at_once - d.rates.cached_columns) * rounds / d.rates.columns;
}

}  // namespace

double aten_seconds(const Facts& f, const Device& d) {
  const Speed s = speed(f.problem, f.itemsize, d.rates);
  double flops = f.problem.dense_flops();
  for (int64_t i = 0; i < std::min<int64_t>(s.skips, kAxes); ++i) flops *= f.live[i];
  const double call = one_channel(f.problem) ? d.rates.aten_depthwise_call : d.rates.aten_call;
  const double seconds = call + flops / (s.rate * d.threads) + f.bytes_floor / d.rates.copy;
  return seconds + repacking(f, d);
}

}  // namespace atrousops::core
