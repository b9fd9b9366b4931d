#include "core/rates.h"

#include <algorithm>

#include "core/plan_candidates.h"

namespace atrousops::core {
namespace {

constexpr RateName kRates[] = {
    {"aten", &Rates::aten, Unit::operations, true, true},
    {"aten_pointwise", &Rates::aten_pointwise, Unit::operations, true, true},
    {"aten_weight_grad", &Rates::aten_weight_grad, Unit::operations, true, true},
    {"aten_weight_grad_odd", &Rates::aten_weight_grad_odd, Unit::operations, true, true},
    {"aten_strided", &Rates::aten_strided, Unit::operations, true, true},
    {"aten_strided_odd", &Rates::aten_strided_odd, Unit::operations, true, true},
    {"aten_grouped", &Rates::aten_grouped, Unit::operations, true, true},
    {"aten_grouped_grad", &Rates::aten_grouped_grad, Unit::operations, true, true},
    {"aten_depthwise", &Rates::aten_depthwise, Unit::operations, true, true},
    {"aten_depthwise_grad", &Rates::aten_depthwise_grad, Unit::operations, true, true},
    {"aten_strided_grouped", &Rates::aten_strided_grouped, Unit::operations, true, true},
    {"gemm", &Rates::gemm, Unit::operations, true, true},
    {"gemm_weight", &Rates::gemm_weight, Unit::operations, true, false},
    {"depthwise", &Rates::depthwise, Unit::operations, true, true},
    {"grouped", &Rates::grouped, Unit::operations, true, true},
    {"tensor", &Rates::tensor, Unit::operations, false, true},
    {"wgmma", &Rates::wgmma, Unit::operations, false, true},
    {"dot", &Rates::dot, Unit::operations, false, true},
    {"looped", &Rates::looped, Unit::operations, false, true},
    {"skips", &Rates::skips, Unit::count, true, false},
    {"weight_skips", &Rates::weight_skips, Unit::count, true, false},
    {"copy", &Rates::copy, Unit::bytes, true, true},
    {"tails", &Rates::tails, Unit::bytes, true, false},
    {"columns", &Rates::columns, Unit::bytes, true, false},
    {"cached_columns", &Rates::cached_columns, Unit::count, true, false},
    {"results", &Rates::results, Unit::bytes, true, false},
    {"pieces", &Rates::pieces, Unit::bytes, true, false},
    {"turned", &Rates::turned, Unit::bytes, false, true},
    {"aten_call", &Rates::aten_call, Unit::seconds, true, true},
    {"our_call", &Rates::our_call, Unit::seconds, true, true},
    {"our_region", &Rates::our_region, Unit::seconds, true, true},
    {"our_gemm", &Rates::our_gemm, Unit::seconds, true, false},
    {"aten_depthwise_call", &Rates::aten_depthwise_call, Unit::seconds, true, true},
    {"our_depthwise_call", &Rates::our_depthwise_call, Unit::seconds, true, false},
    {"depthwise_row", &Rates::depthwise_row, Unit::count, true, false},
};

bool any_axis(const Problem& p, const auto& f) { return std::any_of(p.axis.begin(), p.axis.end(), f); }

bool dilation_above(const Problem& p, int64_t, double limit) {
  return any_axis(p, [&](const Axis& a) { return a.kernel > 1 && static_cast<double>(a.dilation) > limit; });
}
bool dilation_at_most(const Problem& p, int64_t itemsize, double limit) { return !dilation_above(p, itemsize, limit); }
bool padding_above(const Problem& p, int64_t, double limit) {
  return static_cast<double>(p.axis[kAxes - 1].pad_lo) > limit;
}
bool weight_grad_kernel_above(const Problem& p, int64_t, double limit) {
  return p.kind == Kind::weight_grad &&
         any_axis(p, [&](const Axis& a) { return static_cast<double>(a.kernel) > limit; });
}
bool stride_above(const Problem& p, int64_t, double limit) {
  return any_axis(p, [&](const Axis& a) { return static_cast<double>(a.stride) > limit; });
}
bool odd_stride(const Problem& p, int64_t, double limit) {
  return any_axis(p, [](const Axis& a) { return a.stride > 1 && a.stride % 2 != 0; }) == (limit != 0);
}
bool odd_sums(const Problem& p, int64_t, double limit) {
  return (width_and_depth(p).second / std::max<int64_t>(p.groups, 1) % 2 != 0) == (limit != 0);
}
bool groups_above(const Problem& p, int64_t, double limit) { return static_cast<double>(p.groups) > limit; }
bool beyond_image(const Problem& p, int64_t, double limit) {
  const bool beyond = any_axis(p, [](const Axis& a) { return a.dilation * (a.kernel - 1) >= a.in; });
  return beyond == (limit != 0);
}
bool row_dilation(const Problem& p, int64_t, double limit) { return static_cast<double>(p.axis[1].dilation) == limit; }
bool row_bytes_above(const Problem& p, int64_t itemsize, double limit) {
  const Axis &rows = p.axis[1], &columns = p.axis[2];
  const double row = static_cast<double>(p.kind == Kind::forward ? columns.in * p.c : columns.out * p.k);
  return static_cast<double>(rows.dilation * (rows.kernel - 1) + 1) * row * static_cast<double>(itemsize) > limit;
}
bool channels_below(const Problem& p, int64_t, double limit) {
  return p.groups == 1 && static_cast<double>(width_and_depth(p).first) < limit;
}
bool bytes_apart(const Problem& p, int64_t itemsize, double limit) {
  return width_and_depth(p).second * itemsize % std::max<int64_t>(static_cast<int64_t>(limit), 1) == 0;
}

constexpr Condition kConditions[] = {
    {"dilation_above", dilation_above},                      // of an axis along which there is more than one tap
    {"dilation_at_most", dilation_at_most},                  // of all of them
    {"padding_above", padding_above},                        // before the last axis
    {"weight_grad_kernel_above", weight_grad_kernel_above},  // a weight gradient; the size of its kernel
    {"stride_above", stride_above},                          // of an axis
    {"odd_stride", odd_stride},                              // of an axis, and not 1
    {"odd_sums", odd_sums},                                  // a result sums over an odd number of channels
    {"groups_above", groups_above},
    {"beyond_image", beyond_image},        // the dilated kernel is larger than the image
    {"row_dilation", row_dilation},        // of the last axis but one, exactly
    {"row_bytes_above", row_bytes_above},  // of the image's rows from a kernel's first to its last
    {"channels_below", channels_below},    // of the result, which has one group
    {"bytes_apart", bytes_apart},          // positions that are summed lie a multiple of them apart
};

}  // namespace

std::span<const RateName> rate_names() { return kRates; }
std::span<const Condition> conditions() { return kConditions; }

bool Exception::holds(const Problem& problem, int64_t itemsize) const {
  return std::all_of(when.begin(), when.end(),
                     [&](const auto& each) { return each.first->holds(problem, itemsize, each.second); });
}

}  // namespace atrousops::core
