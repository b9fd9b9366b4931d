#include "cpu/conv_direct.h"

#include <algorithm>
#include <deque>
#include <numeric>

#include "core/phases.h"
#include "cpu/conv_layout.h"

namespace atrousops::cpu {

using core::kAxes;

namespace {

// The runs of one axis, with the storage that they point into.
struct Runs {
  std::vector<ConvRun> runs;
  std::deque<std::vector<int64_t>> numbers;
};

Runs make_runs(const std::vector<core::AxisPhase>& phases) {
  Runs all;
  for (const core::AxisPhase& phase : phases)
    for (const core::AxisSegment& s : phase.segments) {
      if (s.length() == 0) continue;
      std::vector<int64_t>&r = all.numbers.emplace_back(), &delta = all.numbers.emplace_back();
      for (int64_t t = s.tap_begin; t < s.tap_end; ++t) {
        r.push_back(phase.taps[t].r);
        delta.push_back(phase.taps[t].delta);
      }
      all.runs.push_back({s.begin, s.end, phase.p0, phase.p, phase.q0, phase.q, s.taps(), r.data(), delta.data()});
    }
  return all;
}

// Per worker.
struct Scratch {
  Tensor taps, values;
  int64_t tap_count, value_count;
  ScalarType dtype;

  Scratch(int64_t workers, int64_t tap_count, int64_t value_count, ScalarType dtype, const Tensor& like)
      : taps(torch::stable::empty({workers, tap_count}, ScalarType::Long, std::nullopt, like.device())),
        values(torch::stable::empty({workers, value_count}, dtype, std::nullopt, like.device())),
        tap_count(tap_count),
        value_count(value_count),
        dtype(dtype) {}

  ConvDirectScratch of(int64_t worker) const {
    return {static_cast<int64_t*>(taps.data_ptr()) + worker * tap_count,
            at(values.data_ptr(), worker * value_count, dtype)};
  }
};

// channels_last [j][i][tap][group], else [group][j][i][tap]; j counts destination channels of a group, i source ones.
Tensor pack_weight(const core::Problem& p, const Tensor& weight, bool channels_last, ScalarType dtype) {
  const bool forward = p.kind == core::Kind::forward;
  const int64_t k = p.k / p.groups, c = p.c / p.groups, taps = p.kernel_positions();
  const WeightView w = weight_view(weight, taps);
  const int64_t j = forward ? k : c, i = forward ? c : k;
  const int64_t stride_j = forward ? w.stride_k : w.stride_c, stride_i = forward ? w.stride_c : w.stride_k;
  if (channels_last)
    return conv_packed(w.tensor, {j, i, taps, p.groups}, {stride_j, stride_i, w.stride_t, k * w.stride_k}, dtype);
  return conv_packed(w.tensor, {p.groups, j, i, taps}, {k * w.stride_k, stride_j, stride_i, w.stride_t}, dtype);
}

int64_t product(const int64_t (&v)[kAxes]) { return v[0] * v[1] * v[2]; }

}  // namespace

Tensor conv_direct(const core::Problem& p, const Tensor& src, const Tensor& weight, const std::optional<Tensor>& bias,
                   const std::vector<int64_t>& out_size, bool channels_last) {
  Tensor out = empty(out_size, src, channels_last);
  if (out.numel() == 0) return out;
  const bool forward = p.kind == core::Kind::forward;
  const ScalarType dtype = src.scalar_type(), compute = compute_dtype(dtype);
  const Tensor in = channels_last ? conv_channels_last(src) : dense(src, false);
  const Tensor w = pack_weight(p, weight, channels_last, compute);
  const std::optional<Tensor> b = bias ? std::optional(dense(*bias, false)) : std::nullopt;
  ConvDirectArgs args{in.data_ptr(),
                      out.data_ptr(),
                      w.data_ptr(),
                      b ? b->data_ptr() : nullptr,
                      dtype,
                      p.groups,
                      (forward ? p.c : p.k) / p.groups,
                      (forward ? p.k : p.c) / p.groups,
                      {},
                      {},
                      {},
                      {},
                      {}};
  const core::Phases phases = core::phases(p);
  std::array<Runs, kAxes> runs;
  for (int i = 0; i < kAxes; ++i) {
    runs[i] = make_runs(phases.axis[i]);
    args.src_size[i] = forward ? p.axis[i].in : p.axis[i].out;
    args.dst_size[i] = forward ? p.axis[i].out : p.axis[i].in;
    args.kernel[i] = p.axis[i].kernel;
    args.run[i] = runs[i].runs.data();
    args.runs[i] = static_cast<int64_t>(runs[i].runs.size());
  }
  const int64_t taps = product(args.kernel) * args.src_count;
  const int64_t items = channels_last ? p.n * args.dst_size[0] * args.dst_size[1] : p.n * p.groups;
  const int64_t planes = channels_last || dtype == compute ? 0 : args.src_count * product(args.src_size);
  const Scratch scratch(conv_workers(items), 2 * taps, taps + args.dst_size[2] + planes, compute, src);
  const auto kernel =
      channels_last ? ATROUSOPS_SELECT(conv_direct_channels_last) : ATROUSOPS_SELECT(conv_direct_planes);
  const int64_t step = std::max<int64_t>(1, 16384 * items / (out.numel() * taps));
  conv_each((items + step - 1) / step, [&](int64_t block, int64_t worker) {
    const ConvDirectScratch own = scratch.of(worker);
    for (int64_t item = block * step; item < std::min(block * step + step, items); ++item) kernel(args, own, item);
  });
  return out;
}

Tensor conv_direct_weight(const core::Problem& p, const Tensor& grad, const Tensor& input,
                          const std::vector<int64_t>& out_size) {
  if (p.n == 0 || p.c == 0) return torch::stable::new_zeros(input, out_size);
  const bool channels_last = prefers_channels_last(input);
  const ScalarType dtype = input.scalar_type(), compute = compute_dtype(dtype);
  const Tensor g = channels_last ? conv_channels_last(grad) : dense(grad, false), x = dense(input, channels_last);
  ConvDirectWeightArgs args{g.data_ptr(),   x.data_ptr(), nullptr, dtype, p.n, p.groups, p.c / p.groups,
                            p.k / p.groups, {},           {},      {},    {},  {},       1};
  const core::Phases phases = core::phases(p);
  std::array<std::vector<ConvTapRange>, kAxes> taps;
  for (int i = 0; i < kAxes; ++i) {
    for (const core::AxisTap& t : phases.axis[i][0].taps)
      taps[i].push_back({t.r, phases.axis[i][0].q0 + t.delta, t.begin, t.end});
    std::sort(taps[i].begin(), taps[i].end(), [](const auto& a, const auto& b) { return a.r < b.r; });
    args.in[i] = p.axis[i].in;
    args.out[i] = p.axis[i].out;
    args.kernel[i] = p.axis[i].kernel;
    args.stride[i] = p.axis[i].stride;
    args.tap[i] = taps[i].data();
  }
  // Slices make enough items for any pool; their number never depends on its size.
  const int64_t blocks = channels_last ? (p.groups + kConvDirectBlock - 1) / kConvDirectBlock : p.groups;
  const int64_t share = channels_last ? p.n * args.out[0] * args.out[1] : p.n;
  args.slices = std::clamp<int64_t>(64 / blocks, 1, std::clamp<int64_t>(share, 1, 16));
  const int64_t each = args.k_count * args.c_count * product(args.kernel);
  Tensor part = torch::stable::empty({args.slices, p.groups, each}, compute, std::nullopt, input.device());
  torch::stable::zero_(part);
  args.part = part.data_ptr();
  const int64_t items = args.slices * blocks;
  const int64_t planes = args.k_count * product(args.out) + args.c_count * product(args.in);
  const Scratch scratch(conv_workers(items), 0, channels_last || dtype == compute ? 0 : planes, compute, input);
  const auto by_rows = ATROUSOPS_SELECT(conv_direct_weight_channels_last);
  const auto by_planes = ATROUSOPS_SELECT(conv_direct_weight_planes);
  conv_each(items, [&](int64_t item, int64_t worker) {
    if (channels_last) {
      by_rows(args, item);
    } else {
      by_planes(args, scratch.of(worker), item);
    }
  });
  const int64_t kernel_taps = product(args.kernel), channels = args.k_count * args.c_count;
  if (!channels_last)
    return conv_weight_from(part, args.slices, {p.k, 1, each / args.k_count}, {each / args.k_count, 0, 1}, {0},
                            out_size, dtype);
  std::vector<int64_t> in_order(kernel_taps);
  std::iota(in_order.begin(), in_order.end(), 0);
  return conv_weight_from(part, args.slices, {channels, kernel_taps, p.groups}, {kernel_taps, 1, each}, in_order,
                          out_size, dtype);
}

}  // namespace atrousops::cpu
