// The convolution kernels' host functions, and what they are called with.
#pragma once

#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include <array>
#include <optional>
#include <vector>

#include "core/problem.h"
#include "cuda/conv_tables.h"
#include "stable/dispatch.h"
#include "stable/tensor.h"

namespace atrousops::cuda {

inline ScalarType compute_dtype(ScalarType t) { return t == ScalarType::Double ? t : ScalarType::Float; }

// dst = the sum over taps of src and weight, plus bias: forward, input gradient, transposed. All of one dtype and
// device, of any strides; dst is dense, contiguous or channels_last. Where src and weight are of 8 bits dst and bias
// are not, and weight may lack the last channels of each group of src, which are zeros.
struct ConvCall {
  const core::Problem& problem;
  const Tensor &src, &weight;
  const std::optional<Tensor>& bias;
  Tensor& dst;
  bool allow_tf32 = false;
};
// out (K, C / groups, kernel), contiguous, of grad (N, K, *) and input (N, C, *).
struct ConvWeightCall {
  const core::Problem& problem;
  const Tensor &grad, &input;
  Tensor& out;
  bool allow_tf32 = false;
};

// The operator. first_kernel: from which kernel of core/cuda_kernels.h on, counted from 1, one may run; 0: all.
Tensor conv(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
            const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
            const std::vector<int64_t>& dilation, int64_t groups, bool allow_tf32, int64_t first_kernel);

void conv_simt(const ConvCall& call);
void conv_mma(const ConvCall& call);
void conv_wgmma(const ConvCall& call);
void conv_depthwise(const ConvCall& call);
void conv_grouped(const ConvCall& call);
void conv_simt_weight(const ConvWeightCall& call);
void conv_grouped_weight(const ConvWeightCall& call);
void conv_mma_weight(const ConvWeightCall& call);
void conv_wgmma_weight(const ConvWeightCall& call);

// Why a kernel cannot run a call, or null.
const char* conv_depthwise_rule(const ConvCall& call);
const char* conv_mma_rule(const ConvCall& call);
const char* conv_wgmma_rule(const ConvCall& call);
const char* conv_mma_weight_rule(const ConvWeightCall& call);
const char* conv_wgmma_weight_rule(const ConvWeightCall& call);

// Whether products are of 8 bits, and the result of another dtype.
inline bool conv_narrow(ScalarType t) { return t == ScalarType::Char || t == ScalarType::Float8_e4m3fn; }
// Elements in 16 bytes; and whether a channels_last tensor can be read so many channels at a time.
inline int64_t conv_vector(ScalarType t) {
  return t == ScalarType::Double ? 2 : t == ScalarType::Float ? 4 : conv_narrow(t) ? 16 : 8;
}
bool conv_fits_vectors(const Tensor& t, int64_t vector);

int64_t conv_multiprocessors(const Tensor& t);

// A tensor of four dimensions as a map from its linear index, the last dimension fastest, to an offset.
struct ConvMap {
  int64_t size[4], stride[4];

  int64_t count() const { return size[0] * size[1] * size[2] * size[3]; }
  __host__ __device__ int64_t operator()(int64_t index) const {
    int64_t offset = 0;
#pragma unroll
    for (int d = 3; d > 0; --d) {
      const int64_t rest = index / size[d];
      offset += (index - rest * size[d]) * stride[d];
      index = rest;
    }
    return offset + index * stride[0];
  }
};

// Weights in the order in which a kernel reads them, contiguous. `groups_last`: [tap][dst][src][group], else
// [group][tap][src][dst], or [group][tap][dst][src] with `src_last`.
enum class ConvOrder { groups_last, dst_last, src_last };
Tensor conv_pack_weights(const core::Problem& problem, const Tensor& weight, ConvOrder order);
// The same as strides of `packed`.
ConvWeights conv_packed_strides(const core::Problem& problem, ConvOrder order);

// out[map(i)] = part[0][i] + part[1][i] + ..., in this order, rounded once.
void conv_sum_parts(const Tensor& part, int64_t parts, const ConvMap& map, Tensor& out);

}  // namespace atrousops::cuda
