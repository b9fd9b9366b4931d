// The geometry of a convolution, common to forward, both gradients and the transposed operator.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace atrousops::core {

inline constexpr int kAxes = 3;  // D, H, W: a 2-D problem has D of size 1, a 1-D problem D and H

// forward:     x (N, C, in)  -> y (N, K, out)
// input_grad:  dy (N, K, out) -> dx (N, C, in); the transposed convolution is the same map
// weight_grad: x, dy -> dw (K, C / groups, kernel)
enum class Kind { forward, input_grad, weight_grad };

struct Axis {
  int64_t in = 1, out = 1, kernel = 1, stride = 1, dilation = 1, pad_lo = 0, pad_hi = 0;

  // Number of positions at which the dilated kernel fits into the padded input.
  int64_t natural_out() const;
  bool operator==(const Axis&) const = default;
};

// From the convolution's point of view: `in`, `c` belong to its input, `out`, `k` to its output.
struct Problem {
  Kind kind = Kind::forward;
  int64_t n = 1, c = 1, k = 1, groups = 1;
  std::array<Axis, kAxes> axis;

  int64_t in_positions() const { return axis[0].in * axis[1].in * axis[2].in; }
  int64_t out_positions() const { return axis[0].out * axis[1].out * axis[2].out; }
  int64_t kernel_positions() const { return axis[0].kernel * axis[1].kernel * axis[2].kernel; }
  int64_t input_elements() const { return n * c * in_positions(); }
  int64_t output_elements() const { return n * k * out_positions(); }
  int64_t weight_elements() const { return k * (c / groups) * kernel_positions(); }
  // Two per multiply-add, including dead taps; the same for all three kinds.
  double dense_flops() const;
  Problem with(Kind other) const;
  bool operator==(const Problem&) const = default;
};

struct Spatial {
  std::span<const int64_t> in, kernel, stride, dilation, pad_lo, pad_hi;  // 1 to 3 entries each, D first
};

// Checked: throws ArgumentError with the argument, the rule, the value and a remedy. `out` is given if a transposed
// convolution's output_padding leaves positions that the convolution would also compute; by default all.
Problem make_problem(Kind kind, int64_t n, int64_t c, int64_t k, int64_t groups, const Spatial& spatial,
                     std::span<const int64_t> out = {});

// x (N, K, input) -> y (N, C, ...), size (input - 1) * stride + dilation * (kernel - 1) + 1 - pads + output_padding.
// spatial.in is the transposed convolution's own input size; the result is an input_grad problem.
Problem make_transposed(int64_t n, int64_t k, int64_t c, int64_t groups, const Spatial& spatial,
                        std::span<const int64_t> output_padding);

}  // namespace atrousops::core
