#include "core/problem.h"

#include <algorithm>

#include "core/checked.h"

namespace atrousops::core {

int64_t Axis::natural_out() const {
  const int64_t span = checked_add(checked_mul(dilation, kernel - 1), 1);
  const int64_t padded = checked_add(in, checked_add(pad_lo, pad_hi));
  return padded < span ? 0 : (padded - span) / stride + 1;
}

double Problem::dense_flops() const {
  double flops = 2.0 * static_cast<double>(n) * static_cast<double>(k) * static_cast<double>(c / groups);
  for (const Axis& a : axis) flops *= static_cast<double>(a.out) * static_cast<double>(a.kernel);
  return flops;
}

Problem Problem::with(Kind other) const {
  Problem p = *this;
  p.kind = other;
  return p;
}

[[noreturn]] static void too_large(const char* op) {
  bad_value(op, "sizes", "keep every tensor below 2^63 elements", "a larger one",
            "Use a smaller batch, stride or dilation.");
}

static std::string text(std::span<const int64_t> v) {
  std::string s = "(";
  for (size_t i = 0; i < v.size(); ++i) s += (i ? ", " : "") + std::to_string(v[i]);
  return s + (v.size() == 1 ? ",)" : ")");
}

static void check_all(const char* op, const char* argument, std::span<const int64_t> v, size_t rank, int64_t least) {
  if (v.size() != rank)
    bad_value(op, argument, "have " + std::to_string(rank) + " entries, one per spatial axis", text(v));
  const char* rule = least > 0 ? "be positive" : "not be negative";
  if (std::any_of(v.begin(), v.end(), [&](int64_t x) { return x < least; })) bad_value(op, argument, rule, text(v));
}

static void check_channels(const char* op, int64_t n, int64_t c, int64_t k, int64_t groups) {
  const auto str = [](int64_t v) { return std::to_string(v); };
  if (n < 0) bad_value(op, "batch size", "not be negative", str(n));
  if (groups < 1) bad_value(op, "groups", "be positive", str(groups));
  for (const int64_t v : {c, k})
    if (v < 0 || v % groups != 0)
      bad_value(op, "channels", "be multiples of groups = " + str(groups), str(v), "Use groups = 1 for any number.");
}

static void check_spatial(const char* op, const Spatial& s) {
  const size_t rank = s.in.size();
  if (rank < 1 || rank > kAxes) bad_value(op, "input", "have 1 to 3 spatial axes", std::to_string(rank));
  check_all(op, "input size", s.in, rank, 0);
  check_all(op, "kernel_size", s.kernel, rank, 1);
  check_all(op, "stride", s.stride, rank, 1);
  check_all(op, "dilation", s.dilation, rank, 1);
  check_all(op, "padding", s.pad_lo, rank, 0);
  check_all(op, "padding", s.pad_hi, rank, 0);
}

// Every element count and every coordinate that index arithmetic can reach.
static void check_counts(const char* op, const Problem& p) {
  try {
    int64_t x = checked_mul(p.n, p.c), y = checked_mul(p.n, p.k), w = checked_mul(p.k, p.c / p.groups);
    for (const Axis& a : p.axis) {
      x = checked_mul(x, a.in);
      y = checked_mul(y, a.out);
      w = checked_mul(w, a.kernel);
      checked_add(checked_mul(a.stride, a.out), checked_add(checked_mul(a.dilation, a.kernel), a.pad_lo));
    }
  } catch (const Overflow&) {
    too_large(op);
  }
}

static Axis axis_of(const Spatial& s, size_t i) {
  return {s.in[i], 0, s.kernel[i], s.stride[i], s.dilation[i], s.pad_lo[i], s.pad_hi[i]};
}

Problem make_problem(Kind kind, int64_t n, int64_t c, int64_t k, int64_t groups, const Spatial& spatial,
                     std::span<const int64_t> out) {
  const char* op = kind == Kind::forward      ? "convolution"
                   : kind == Kind::input_grad ? "input gradient"
                                              : "weight gradient";
  check_channels(op, n, c, k, groups);
  check_spatial(op, spatial);
  const size_t rank = spatial.in.size();
  if (!out.empty()) check_all(op, "output size", out, rank, 1);
  Problem p{kind, n, c, k, groups, {}};
  for (size_t i = 0; i < rank; ++i) {
    Axis a = axis_of(spatial, i);
    int64_t natural = 0;
    try {
      natural = a.natural_out();
    } catch (const Overflow&) {
      bad_value(op, "dilation", "keep the dilated kernel below 2^63 positions", text(spatial.dilation));
    }
    const std::string padded = "the padded input, " + std::to_string(a.in + a.pad_lo + a.pad_hi);
    if (natural < 1)
      bad_value(op, "kernel_size", "fit, dilated, into " + padded, std::to_string(a.dilation * (a.kernel - 1) + 1),
                "Lower the dilation or add padding.");
    a.out = out.empty() ? natural : out[i];
    if (a.out > natural)
      bad_value(op, "output size", "be at most " + std::to_string(natural) + " on spatial axis " + std::to_string(i),
                std::to_string(a.out));
    p.axis[kAxes - rank + i] = a;
  }
  check_counts(op, p);
  return p;
}

static int64_t transposed_size(const Axis& a, int64_t input, int64_t output_padding) {
  const int64_t full = checked_add(checked_mul(input - 1, a.stride), checked_mul(a.dilation, a.kernel - 1));
  return checked_add(checked_add(full, 1 + output_padding), -checked_add(a.pad_lo, a.pad_hi));
}

Problem make_transposed(int64_t n, int64_t k, int64_t c, int64_t groups, const Spatial& spatial,
                        std::span<const int64_t> output_padding) {
  const char* op = "transposed convolution";
  check_channels(op, n, c, k, groups);
  check_spatial(op, spatial);
  const size_t rank = spatial.in.size();
  check_all(op, "input size", spatial.in, rank, 1);
  check_all(op, "output_padding", output_padding, rank, 0);
  Problem p{Kind::input_grad, n, c, k, groups, {}};
  for (size_t i = 0; i < rank; ++i) {
    Axis a = axis_of(spatial, i);
    if (output_padding[i] >= std::max(a.stride, a.dilation))
      bad_value(op, "output_padding", "be smaller than stride or dilation", text(output_padding));
    a.out = spatial.in[i];
    try {
      a.in = transposed_size(a, spatial.in[i], output_padding[i]);
    } catch (const Overflow&) {
      too_large(op);
    }
    if (a.in < 1)
      bad_value(op, "padding", "leave an output of at least 1 on every axis", std::to_string(a.in),
                "Lower the padding.");
    p.axis[kAxes - rank + i] = a;
  }
  check_counts(op, p);
  return p;
}

}  // namespace atrousops::core
