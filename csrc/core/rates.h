// Rates of a machine, measured or guessed, for one dtype and memory format. The values are in the files of
// atrousops/dispatch/machines, under the same names.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "core/problem.h"

namespace atrousops::core {

struct Exception;

// FLOP/s of one thread of a CPU, or of a whole GPU, unless noted.
struct Rates {
  // PyTorch's convolutions of one group, or of groups of a multiple of 8 channels. `odd`: other channels.
  double aten = 0;            // forward and input gradient
  double aten_pointwise = 0;  // with a 1x1 kernel, which is a plain GEMM
  double aten_weight_grad = 0, aten_weight_grad_odd = 0;
  double aten_strided = 0, aten_strided_odd = 0;  // transposed, with a stride
  // Groups of odd numbers of channels, and of one.
  double aten_grouped = 0, aten_grouped_grad = 0;
  double aten_depthwise = 0, aten_depthwise_grad = 0;
  double aten_strided_grouped = 0;  // transposed, with a stride
  // Our gathered GEMM, that of weight gradients, and our loops.
  double gemm = 0, gemm_weight = 0, depthwise = 0, grouped = 0;
  // On a GPU: our GEMMs by mma.sync and by wgmma; Triton's GEMM and its loop.
  double tensor = 0, wgmma = 0, dot = 0, looped = 0;
  // The number of axes (of three, from the first) along which PyTorch skips taps outside the image.
  double skips = 0, weight_skips = 0;
  // bytes/s of the machine, read and written.
  double copy = 0;
  // bytes/s at which PyTorch copies depthwise planes into partly used blocks of 8; writes the columns of an odd weight
  // gradient beyond `cached_columns` bytes; rearranges the result of a strided transposed convolution; at which our
  // GEMMs gather rows whose channels are not a multiple of 16; at which GPU inputs and results are converted from and
  // to NCHW.
  double tails = kUnlimited, columns = kUnlimited, cached_columns = 0, results = kUnlimited, pieces = kUnlimited;
  double turned = kUnlimited;
  // Seconds of overhead per call, per region, and per product of our GEMMs.
  double aten_call = 0, our_call = 0, our_region = 0, our_gemm = 0;
  // Seconds of overhead of a depthwise call. Pixels: the row width below which our loop does not get faster.
  double aten_depthwise_call = 0, our_depthwise_call = 0, depthwise_row = 0;
  // Exceptions to the rates above.
  std::vector<Exception> exceptions;

  static constexpr double kUnlimited = std::numeric_limits<double>::infinity();
};

enum class Unit { operations, bytes, seconds, count };  // operations and bytes of a second

// A rate by name; those in a CPU's file, and those in a GPU's.
struct RateName {
  const char* name;
  double Rates::* value;
  Unit unit;
  bool cpu, gpu;
};
std::span<const RateName> rate_names();

// A condition on a problem, with the number that it is compared with.
struct Condition {
  const char* name;
  bool (*holds)(const Problem& problem, int64_t itemsize, double limit);
};
std::span<const Condition> conditions();

// If all conditions hold, `of` is at most `rate`, and PyTorch skips taps along `skips` axes unless that is negative.
struct Exception {
  double Rates::* of = nullptr;
  double rate = 0;
  int64_t skips = -1;
  std::vector<std::pair<const Condition*, double>> when;

  bool holds(const Problem& problem, int64_t itemsize) const;
};

}  // namespace atrousops::core
