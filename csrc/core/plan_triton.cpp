// The candidates on a GPU that uses Triton, as in atrousops/triton/conv.py.
#include "core/plan_candidates.h"

namespace atrousops::core {
namespace {

// The same as few_channels in geometry.py, which the launchers use.
constexpr int64_t kFew = 64;

bool few_channels(const Problem& p) { return p.groups > 1 && (p.c / p.groups) * (p.k / p.groups) <= kFew; }

const char* dot_rule(const Problem& p, const Device&, int64_t) {
  return few_channels(p) ? "few channels a group are a case for a loop" : nullptr;
}
const char* looped_rule(const Problem& p, const Device&, int64_t) {
  return few_channels(p) ? nullptr : "too many channels a group for a loop";
}

double dot_seconds(const Facts& f, const Device& d) {
  const int64_t width = width_and_depth(f.problem).first / f.problem.groups;
  return tiled_seconds(f, d, d.rates.dot, {128, width <= 32 ? 32 : width <= 64 ? 64 : 128, 1});
}
double looped_seconds(const Facts& f, const Device& d) { return loop_seconds(f, d, d.rates.looped); }

// dot     a GEMM over the live taps of each region, by tl.dot
// looped  a loop over the taps and the few channels of a group
constexpr Entry kTriton[] = {
    kAten,
    {"dot", dot_rule, dot_seconds, packed_weights},
    {"looped", looped_rule, looped_seconds, packed_weights},
};

}  // namespace

std::span<const Entry> triton_entries() { return kTriton; }

}  // namespace atrousops::core
