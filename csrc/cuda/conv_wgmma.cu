// Forward, input gradient and transposed convolution by TMA and wgmma: when, with which boxes, and how.
#include <algorithm>
#include <deque>
#include <mutex>

#include "core/boxes.h"
#include "core/checked.h"
#include "cuda/conv_wgmma.h"

namespace atrousops::cuda {
namespace {

using core::ceil_div;

constexpr int64_t kSpan = 128;  // bytes of a box's rows

// Of tensor cores that predictions go by, those of an H100; only ratios among tiles matter.
double rate(ScalarType dtype) { return conv_narrow(dtype) ? 1000e12 : dtype == ScalarType::Float ? 250e12 : 500e12; }

// Choosing boxes takes longer than some kernels: the last answers are kept.
core::BoxPlan planned(const core::BoxRequest& request) {
  struct Answer {
    core::BoxRequest request;
    core::BoxPlan plan;
  };
  static std::mutex mutex;
  static std::deque<Answer> answers;
  constexpr size_t kMost = 256;
  const auto same = [&](const Answer& a) {
    return a.request.problems == request.problems && a.request.itemsize == request.itemsize &&
           a.request.multiprocessors == request.multiprocessors && a.request.most_columns == request.most_columns;
  };
  {
    const std::lock_guard lock(mutex);
    if (const auto found = std::find_if(answers.begin(), answers.end(), same); found != answers.end())
      return found->plan;
  }
  const core::BoxPlan plan = core::plan_boxes(request);
  const std::lock_guard lock(mutex);
  answers.push_front({request, plan});
  if (answers.size() > kMost) answers.pop_back();
  return plan;
}

TensorMapType map_type(ScalarType dtype) {
  return conv_narrow(dtype)              ? TensorMapType::u8
         : dtype == ScalarType::BFloat16 ? TensorMapType::bf16
         : dtype == ScalarType::Half     ? TensorMapType::f16
                                         : TensorMapType::tf32;
}

// Boxes of 128 bytes of the channels of a dense channels_last tensor, at every steps-th position of each axis.
TensorMap box_map(const Tensor& tensor, TensorMapType type, const int64_t (&sizes)[kAxes],
                  const int32_t (&steps)[kAxes], const core::Box& box) {
  TensorMapArguments a{type, 5, tensor.const_data_ptr(), {}, {}, {}, {1, 1, 1, 1, 1}, Swizzle::bytes_128};
  a.sizes[0] = tensor.size(1);
  a.box[0] = static_cast<int>(kSpan / bytes_of(type));
  // Computed, since a tensor may give any stride where it has one position.
  int64_t stride = tensor.size(1) * bytes_of(type);
  for (int d = 1; d <= kAxes; ++d) {
    const int axis = kAxes - d;
    a.sizes[d] = sizes[axis];
    a.strides[d] = stride;
    a.element_strides[d] = steps[axis];
    a.box[d] = static_cast<int>(box.size[axis]) * steps[axis];
    stride *= a.sizes[d];
  }
  a.sizes[4] = tensor.size(0);
  a.strides[4] = stride;
  a.box[4] = static_cast<int>(box.images);
  return make_tensor_map(a);
}

TensorMap source_map(const ConvTable& t, const core::Problem& p, const Tensor& src, const core::Box& box) {
  int64_t sizes[kAxes];
  for (int i = 0; i < kAxes; ++i) sizes[i] = p.kind == core::Kind::input_grad ? p.axis[i].out : p.axis[i].in;
  return box_map(src, map_type(src.scalar_type()), sizes, t.q, box);
}

// Bits as they are.
TensorMap residual_map(const ConvTable& t, const Tensor& residual, const core::Box& box) {
  const TensorMapType type =
      residual.scalar_type() == ScalarType::Float ? TensorMapType::f32 : map_type(residual.scalar_type());
  return box_map(residual, type, {t.dst_size[0], t.dst_size[1], t.dst_size[2]}, t.p, box);
}

// Whether TMA brings a residual: rows of whole 16 bytes, in boxes that step over no more positions than it can.
bool by_tma(const ConvTable& t, const ConvEpilogue& e, const core::Box& box) {
  for (int i = 0; i < kAxes; ++i)
    if (t.p[i] > kMostStep || box.size[i] * t.p[i] > kMostOfBox) return false;
  return e.vector_residual;
}

// Whether results leave by whole 16 bytes, counted in 32 bits.
bool whole_rows(const ConvTable& t, const ConvWgmmaArgs& args, const std::vector<ConvWgmmaCall>& calls,
                const core::Box& box, const Tensor& dst) {
  const auto fits = [&](int64_t pitch, int64_t vector) {
    return t.dst_channels % vector == 0 && t.n * t.dst.n < UINT32_MAX / (pitch / vector);
  };
  if (args.part) return fits(t.dst_channels, 4);
  for (size_t i = 0; i < calls.size(); ++i) {
    const ConvEpilogue& e = args.branch[i].epilogue;
    if (!e.vector_dst || (e.residual && (calls.size() > 1 || !by_tma(t, e, box)))) return false;
  }
  return fits(dst.size(1), conv_vector(dst.scalar_type()));
}

// Lines and what they hold as ConvMmaWeights has them.
TensorMap weight_map(const ConvTable& t, const core::Problem& p, const ConvMmaWeights& w, ScalarType dtype,
                     int64_t columns) {
  const int64_t size = bytes_of(map_type(dtype)), taps = p.kernel_positions();
  const int span = static_cast<int>(kSpan / size);
  return make_tensor_map({map_type(dtype),
                          3,
                          w.tensor.const_data_ptr(),
                          {w.columns, taps, w.along ? t.dst_channels : t.src_channels},
                          {0, w.columns * size, w.columns * taps * size},
                          {span, 1, w.along ? static_cast<int>(columns) : span},
                          {1, 1, 1},
                          Swizzle::bytes_128});
}

// Positions of dst, counted in memory order.
void set_positions(ConvTable& t) {
  const int64_t last = t.dst_size[2], plane = last * t.dst_size[1];
  t.dst = {plane * t.dst_size[0], 0, {plane, last, 1}};
}

void start(const ConvWgmmaLaunch& l, ScalarType dtype, Stream stream) {
  switch (dtype) {
    case ScalarType::BFloat16: return conv_wgmma_bf16(l, stream);
    case ScalarType::Half: return conv_wgmma_f16(l, stream);
    case ScalarType::Char: return conv_wgmma_s8(l, stream);
    case ScalarType::Float8_e4m3fn: return conv_wgmma_e4m3(l, stream);
    default: return conv_wgmma_tf32(l, stream);
  }
}

// What multiplying bytes asks for beside rows that TMA takes, or null if the call has it.
const char* bytes_cannot(const ConvCall& call) {
  const core::Problem& p = call.problem;
  const ScalarType dtype = call.src.scalar_type(), out = call.dst.scalar_type();
  if (call.weight.scalar_type() != dtype) return "weights of bytes are of the input's type";
  if (out != ScalarType::Half && out != ScalarType::BFloat16) return "products of bytes are summed to 16 bits only";
  if (p.kind != core::Kind::forward) return "wgmma reads bytes along the reduction only, and weights lie across it";
  if (dtype == ScalarType::Char && p.c / p.groups * p.kernel_positions() > kMostInt8Products)
    return "sums of so many products of int8 may leave 32 bits";
  return nullptr;
}

// How a launch is cut, and its table.
struct Cut {
  core::BoxPlan boxes;
  ConvPlan plan;
};
Cut cut(const std::vector<ConvWgmmaCall>& calls, const Tensor& src, const ConvWgmmaForced& forced) {
  const ScalarType dtype = src.scalar_type();
  core::BoxRequest request;
  for (const ConvWgmmaCall& call : calls) request.problems.push_back(call.problem);
  request.itemsize = bytes_of(map_type(dtype));
  request.multiprocessors = conv_multiprocessors(src);
  request.rate = rate(dtype);
  if (dtype == ScalarType::Float8_e4m3fn) request.most_columns = 128;
  Cut c;
  if (forced.tile < 0) {
    c.boxes = planned(request);
  } else {
    c.boxes.box = forced.box;
    c.boxes.shape = forced.tile;
    c.boxes.splits = forced.splits;
    c.boxes.pairs = core::pairs_of(request.problems, forced.box, core::tile_shapes()[static_cast<size_t>(forced.tile)]);
  }
  c.plan = conv_box_plan(request.problems, c.boxes.box);
  set_positions(c.plan.table);
  return c;
}

}  // namespace

void conv_wgmma(const std::vector<ConvWgmmaCall>& calls, const Tensor& src, Tensor& dst,
                const ConvWgmmaForced& forced) {
  STD_TORCH_CHECK(calls.size() <= kMostBranches, "conv: one launch takes up to ", kMostBranches, " convolutions; got ",
                  calls.size());
  const ScalarType dtype = src.scalar_type();
  Cut c = cut(calls, src, forced);
  ConvTable& t = c.plan.table;
  const core::TileShape& shape = core::tile_shapes()[static_cast<size_t>(c.boxes.shape)];
  const core::Box& box = c.boxes.box;
  STD_TORCH_CHECK(box.positions() * box.images <= shape.rows, "conv: a box of ", box.positions() * box.images,
                  " rows for a tile of ", shape.rows);
  c.plan.upload(src);

  const int64_t positions = t.n * t.dst.n, branches = static_cast<int64_t>(calls.size());
  ConvWgmmaMaps maps{};
  ConvWgmmaArgs args{};
  maps.src = source_map(t, calls[0].problem, src, box);
  std::vector<ConvMmaWeights> weights;
  for (size_t i = 0; i < calls.size(); ++i) {
    const ConvWgmmaCall& call = calls[i];
    weights.push_back(conv_mma_weights(call.problem, call.weight));
    maps.weights[i] = weight_map(t, call.problem, weights[i], dtype, shape.columns);
    const auto& axis = call.problem.axis;
    args.branch[i] = {conv_epilogue(call.bias, call.fuse, dst),
                      {static_cast<int32_t>(axis[1].kernel * axis[2].kernel), static_cast<int32_t>(axis[2].kernel)}};
  }
  for (int i = 0; i < kAxes; ++i) args.box[i] = Divisor32(box.size[i]);
  args.images = static_cast<int32_t>(box.images);
  args.channel_blocks = static_cast<int32_t>(ceil_div(t.src_channels * bytes_of(map_type(dtype)), kSpan));
  args.column_blocks = Divisor32(ceil_div(t.dst_channels, shape.columns));
  args.splits = Divisor(c.boxes.splits);
  args.box_bytes = static_cast<int32_t>(box.positions() * box.images * kSpan);
  args.part_size = positions * t.dst_channels;
  std::optional<Tensor> part;
  if (c.boxes.splits > 1) {
    part = torch::stable::empty({branches * c.boxes.splits, args.part_size}, ScalarType::Float, std::nullopt,
                                src.device());
    args.part = mutable_data<float>(*part);
  }
  args.whole = whole_rows(t, args, calls, box, dst);
  if (const Tensor* const residual = calls[0].fuse.residual; residual && args.whole && !args.part) {
    maps.residual() = residual_map(t, *residual, box);
    args.residual = 1;
  }
  const int64_t tiles = int64_t{t.tiles} * args.column_blocks.value() * c.boxes.splits;
  STD_TORCH_CHECK(args.channel_blocks <= INT32_MAX / calls[0].problem.kernel_positions(),
                  "conv: one sum takes up to 2^31 steps");
  STD_TORCH_CHECK(tiles <= INT32_MAX / 2, "conv: one launch takes up to 2^30 tiles; got ", tiles);
  const int64_t blocks = std::min(tiles, forced.blocks > 0 ? forced.blocks : conv_multiprocessors(src));
  const Stream stream = current_stream(src);
  if (blocks > 1) args.pairs = c.boxes.pairs;
  start({t, maps, args, c.boxes.shape, weights[0].along, static_cast<unsigned>(blocks), dst.scalar_type()}, dtype,
        stream);
  for (size_t i = 0; part && i < calls.size(); ++i) {
    ConvMmaArgs sum{};
    sum.part = args.part + static_cast<int64_t>(i) * c.boxes.splits * args.part_size;
    sum.part_size = args.part_size;
    sum.splits = static_cast<int>(c.boxes.splits);
    sum.epilogue = args.branch[i].epilogue;
    conv_mma_sum(sum, positions, t.dst_channels, dst.scalar_type(), stream);
  }
}

const char* conv_wgmma_rule(const ConvCall& call) {
#if !defined(ATROUSOPS_HOST_CUDA) && !defined(ATROUSOPS_SM90A)
  return "the library was built without sm_90a";
#endif
  const ScalarType dtype = call.src.scalar_type();
  if (properties(call.src).capability != 90) return "needs compute capability 9.0";
  if (dtype == ScalarType::Double || (dtype == ScalarType::Float && !call.allow_tf32))
    return "wgmma multiplies no fp64, and fp32 as tf32 only";
  if (reinterpret_cast<uintptr_t>(call.src.const_data_ptr()) % 16 != 0) return "rows are not aligned to 16 bytes";
  if (conv_narrow(dtype))
    if (const char* why = bytes_cannot(call)) return why;
  return core::boxes_cannot(call.problem, bytes_of(map_type(dtype)));
}

void conv_wgmma(const ConvCall& call) { conv_wgmma(call, {}); }

void conv_wgmma(const ConvCall& call, const ConvFuse& fuse) {
  const Tensor src = dense(call.src, true);
  const std::vector<ConvWgmmaCall> calls = {{call.problem, call.weight, call.bias ? &*call.bias : nullptr, fuse}};
  if (is_channels_last(call.dst)) return conv_wgmma(calls, src, call.dst);
  Tensor dst = empty(sizes_of(call.dst), call.dst, true);
  conv_wgmma(calls, src, dst);
  torch::stable::copy_(call.dst, dst);
}

}  // namespace atrousops::cuda
