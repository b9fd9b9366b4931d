// What a machine does in a second, as it was measured or guessed for one dtype and memory format. The files of
// atrousops/dispatch/machines have these numbers, by these names; this code knows none of them.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "core/problem.h"

namespace atrousops::core {

struct Exception;

// FLOP/s of one thread of a CPU, or of a whole GPU, except as said.
struct Rates {
  // PyTorch's convolutions of one group, or of whole blocks of 8 channels a group. `odd`: of other channels.
  double aten = 0;            // forward and input gradient
  double aten_pointwise = 0;  // with a kernel of one position, where it is a plain GEMM
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
  // Along how many of the three axes, from the first, PyTorch leaves out the taps outside of the image.
  double skips = 0, weight_skips = 0;
  // bytes/s of the machine, read and written.
  double copy = 0;
  // bytes/s at which PyTorch brings depthwise planes into blocks of 8 that they do not fill; at which it writes the
  // columns of an odd weight gradient beyond `cached_columns` bytes; at which it rearranges the result of a strided
  // transposed convolution. At which our GEMMs gather rows of channels that 16 does not divide; at which those on a GPU
  // have inputs and results copied from and into NCHW.
  double tails = kUnlimited, columns = kUnlimited, cached_columns = 0, results = kUnlimited, pieces = kUnlimited;
  double turned = kUnlimited;
  // Seconds of overhead of a call, of each region, and of each product that our GEMMs are cut into.
  double aten_call = 0, our_call = 0, our_region = 0, our_gemm = 0;
  // Seconds of overhead of a depthwise call. Pixels: a narrower row costs our loop as much as one of so many.
  double aten_depthwise_call = 0, our_depthwise_call = 0, depthwise_row = 0;
  // Where a rate above was seen not to hold.
  std::vector<Exception> exceptions;

  static constexpr double kUnlimited = std::numeric_limits<double>::infinity();
};

enum class Unit { operations, bytes, seconds, count };  // operations and bytes of a second

// A rate by name; what a CPU's file has, and what a GPU's.
struct RateName {
  const char* name;
  double Rates::* value;
  Unit unit;
  bool cpu, gpu;
};
std::span<const RateName> rate_names();

// Something that a problem can be, with the number that it is compared to.
struct Condition {
  const char* name;
  bool (*holds)(const Problem& problem, int64_t itemsize, double limit);
};
std::span<const Condition> conditions();

// Where all conditions hold, `of` is no more than `rate`, and PyTorch leaves out taps along `skips` axes if that is not
// negative.
struct Exception {
  double Rates::* of = nullptr;
  double rate = 0;
  int64_t skips = -1;
  std::vector<std::pair<const Condition*, double>> when;

  bool holds(const Problem& problem, int64_t itemsize) const;
};

}  // namespace atrousops::core
