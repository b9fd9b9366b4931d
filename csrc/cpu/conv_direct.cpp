#include "cpu/conv_direct.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <numeric>

#include "core/checked.h"
#include "core/phases.h"
#include "cpu/conv_layout.h"

namespace atrousops::cpu {

using core::kAxes;

namespace {

constexpr int64_t kBandBytes = int64_t{160} << 10;  // of a packed band: it stays in the cache of one core
constexpr int64_t kItems = 32;                      // enough for any pool to be even
constexpr int64_t kPeriod = 64;                     // most phases that run as one

int64_t product(const int64_t (&v)[kAxes]) { return v[0] * v[1] * v[2]; }

// The shape that kernels see, with the storage that it points into.
struct Plan {
  ConvDirectShape shape{};
  std::vector<ConvRun> runs[2];
  std::vector<ConvLine> lines;
  std::vector<ConvPiece> pieces;
  std::vector<ConvBand> bands;
  std::deque<std::vector<int64_t>> numbers;

  std::vector<int64_t>& list() { return numbers.emplace_back(); }
};

void set_runs(Plan& plan, int axis, const std::vector<core::AxisPhase>& phases) {
  for (const core::AxisPhase& phase : phases)
    for (const core::AxisSegment& s : phase.segments) {
      if (s.length() == 0) continue;
      std::vector<int64_t>&r = plan.list(), &delta = plan.list();
      for (int64_t t = s.tap_begin; t < s.tap_end; ++t) {
        r.push_back(phase.taps[t].r);
        delta.push_back(phase.taps[t].delta);
      }
      plan.runs[axis].push_back(
          {s.begin, s.end, phase.p0, phase.p, phase.q0, phase.q, s.taps(), r.data(), delta.data()});
    }
}

// Whether all phases have the same taps up to one displacement: with each source repeated they run as one. Not with a
// tap that reads only padding, whose weight may be NaN.
bool alike(const std::vector<core::AxisPhase>& phases) {
  const auto& first = phases[0].taps;
  if (phases.size() == 1 || static_cast<int64_t>(phases.size()) != phases[0].p || first.empty()) return false;
  return std::all_of(phases.begin(), phases.end(), [&](const core::AxisPhase& p) {
    for (size_t t = 0; t < p.taps.size() && t < first.size(); ++t)
      if (p.taps[t].begin >= p.taps[t].end || p.taps[t].delta - first[t].delta != p.taps[0].delta - first[0].delta)
        return false;
    return p.taps.size() == first.size();
  });
}

// Source positions begin + step * (start + i), i < count, of an axis that holds `size`.
void add_piece(Plan& plan, int64_t begin, int64_t step, int64_t from, int64_t from_step, int64_t count, int64_t size) {
  const int64_t first = std::max<int64_t>(0, core::ceil_div(-from, from_step));
  const int64_t end = std::min(count, core::ceil_div(size - from, from_step));
  if (first < end)
    plan.pieces.push_back({begin + first * step, step, from + first * from_step, from_step, end - first});
}

void set_joint_line(Plan& plan, const std::vector<core::AxisPhase>& phases, int64_t size) {
  const int64_t p = phases[0].p, source = plan.shape.src.size[2];
  const auto& first = phases[0].taps;
  std::vector<int64_t>&r = plan.list(), &at = plan.list();
  for (const core::AxisTap& t : first) at.push_back(p * (t.delta - first[0].delta));
  plan.shape.src.pitch = size + at.back() + kConvDirectLanes;
  for (const core::AxisPhase& phase : phases) {
    for (const core::AxisTap& t : phase.taps) r.push_back(t.r);
    add_piece(plan, phase.p0, p, phase.taps[0].delta, 1, (plan.shape.src.pitch - phase.p0 + p - 1) / p, source);
  }
  plan.lines.push_back({0, 1, size, 1, static_cast<int64_t>(at.size()), p, r.data(), at.data()});
}

void set_lines(Plan& plan, const std::vector<core::AxisPhase>& phases, int64_t size) {
  const bool channels_last = plan.shape.channels_last;
  if (!channels_last && alike(phases) && phases[0].p <= kPeriod) return set_joint_line(plan, phases, size);
  const int64_t q = phases[0].q, source = plan.shape.src.size[2];
  int64_t lo = source, hi = -1;  // positions that are read
  for (const core::AxisPhase& phase : phases)
    for (const core::AxisTap& t : phase.taps) {
      if (t.begin >= t.end) continue;
      lo = std::min(lo, phase.q0 + t.delta);
      hi = std::max(hi, phase.q0 + t.delta + q * (phase.count - 1));
    }
  if (hi < lo) lo = hi = 0;
  const auto whole = [](int64_t n) { return core::ceil_div(n, kConvDirectLanes) * kConvDirectLanes; };
  // In planes a step is one element: positions of one residue lie side by side.
  const int64_t residues = channels_last ? 1 : q;
  // A row that starts at a vector boundary is stored without crossing cache lines.
  if (!channels_last && q == 1 && lo < 0) lo = -whole(-lo);
  const int64_t positions = (hi - lo) / residues + 1;
  const int64_t length = channels_last ? positions : whole(positions + kConvDirectLanes);
  plan.shape.src.pitch = residues * length;
  for (int64_t i = 0; i < residues; ++i) add_piece(plan, i * length, 1, lo + i, residues, length, source);
  for (const core::AxisPhase& phase : phases) {
    std::vector<int64_t>&r = plan.list(), &at = plan.list();
    for (const core::AxisTap& t : phase.taps) {
      if (t.begin >= t.end) continue;
      const int64_t x = phase.q0 + t.delta - lo;
      r.push_back(t.r);
      at.push_back(x % residues * length + x / residues);
    }
    plan.lines.push_back({phase.p0, phase.p, phase.count, channels_last ? q : 1, static_cast<int64_t>(r.size()), 1,
                          r.data(), at.data()});
  }
}

// The source positions along axis 1 that destinations [begin, end) read.
ConvBand band_of(const std::vector<ConvRun>& runs, int64_t begin, int64_t end) {
  ConvBand b{begin, end, 0, 0};
  for (const ConvRun& r : runs) {
    const int64_t first = std::max(r.begin, core::ceil_div(begin - r.p0, r.p));
    const int64_t last = std::min(r.end, core::ceil_div(end - r.p0, r.p)) - 1;
    if (first > last || r.taps == 0) continue;
    const int64_t from = r.q0 + r.q * first + r.delta[0], to = r.q0 + r.q * last + r.delta[r.taps - 1] + 1;
    b.src_begin = b.src_end == 0 ? from : std::min(b.src_begin, from);
    b.src_end = std::max(b.src_end, to);
  }
  return b;
}

// Bands whose packed source fits the cache, but with at most as much overlap as work.
void set_bands(Plan& plan, int64_t row_bytes) {
  ConvDirectShape& s = plan.shape;
  const int64_t size = s.dst_size[1], rows = std::max<int64_t>(1, kBandBytes / std::max<int64_t>(1, row_bytes));
  const ConvRun& any = plan.runs[1][0];
  int64_t overlap = 1;
  for (const ConvRun& r : plan.runs[1])
    if (r.taps > 0) overlap = std::max(overlap, r.delta[r.taps - 1] - r.delta[0] + 1);
  int64_t most = (rows - overlap) * any.p / any.q;
  // Each line writes its own positions of a row: rows stay in the cache until all lines have.
  const int64_t written = s.dst_size[2] * (s.channels_last ? s.groups * s.dst_count : 1) * element_size(s.dtype);
  if (plan.lines.size() > 1) most = std::min(most, kBandBytes * any.p / std::max<int64_t>(1, written));
  most = std::max({most, 2 * overlap * any.p / any.q, int64_t{8}});
  const int64_t fewest = std::min((size + 7) / 8, kItems / std::max<int64_t>(1, s.n * s.blocks));
  const int64_t bands = std::max({(size + most - 1) / most, fewest, int64_t{1}});
  for (int64_t i = 0; i < bands; ++i) {
    plan.bands.push_back(band_of(plan.runs[1], size * i / bands, size * (i + 1) / bands));
    s.src.rows = std::max(s.src.rows, plan.bands[i].src_end - plan.bands[i].src_begin);
  }
}

// For problems that read p.axis.in and write p.axis.out, or the reverse.
void make_plan(Plan& plan, const core::Problem& p, const Tensor& src, bool channels_last) {
  const bool forward = p.kind != core::Kind::input_grad;
  ConvDirectShape& s = plan.shape;
  s.dtype = src.scalar_type();
  s.channels_last = channels_last;
  s.n = p.n;
  s.groups = p.groups;
  s.blocks = channels_last ? (p.groups + kConvDirectBlock - 1) / kConvDirectBlock : p.groups;
  s.src.data = src.const_data_ptr();
  s.src.count = (forward ? p.c : p.k) / p.groups;
  s.dst_count = (forward ? p.k : p.c) / p.groups;
  for (int i = 0; i < kAxes; ++i) {
    s.src.size[i] = forward ? p.axis[i].in : p.axis[i].out;
    s.dst_size[i] = forward ? p.axis[i].out : p.axis[i].in;
    s.kernel[i] = p.axis[i].kernel;
  }
  const core::Phases phases = core::phases(p);
  set_runs(plan, 0, phases.axis[0]);
  set_runs(plan, 1, phases.axis[1]);
  set_lines(plan, phases.axis[2], s.dst_size[2]);
  const int64_t lanes = channels_last ? kConvDirectBlock : 1;
  set_bands(plan, s.src.count * s.src.size[0] * s.src.pitch * lanes * element_size(compute_dtype(s.dtype)));
  for (int i = 0; i < 2; ++i) {
    s.run[i] = plan.runs[i].data();
    s.runs[i] = static_cast<int64_t>(plan.runs[i].size());
  }
  s.line = plan.lines.data();
  s.lines = static_cast<int64_t>(plan.lines.size());
  s.src.piece = plan.pieces.data();
  s.src.pieces = static_cast<int64_t>(plan.pieces.size());
  s.band = plan.bands.data();
  s.bands = static_cast<int64_t>(plan.bands.size());
}

int64_t packed_elements(const ConvPacked& p, bool channels_last) {
  return p.count * p.size[0] * p.rows * p.pitch * (channels_last ? kConvDirectBlock : 1);
}

// Per worker, in elements of the compute type but for the first and the last; all in one allocation.
struct Scratch {
  std::array<int64_t, 6> begin{};
  int64_t size = 0;
  Tensor bytes;
  std::vector<char> cleared;

  Scratch(int64_t workers, ScalarType compute, int64_t offsets, std::array<int64_t, 4> elements, int64_t sums,
          const Tensor& like)
      : cleared(workers) {
    const int64_t each = element_size(compute);
    const std::array<int64_t, 6> sizes = {8 * offsets,        each * elements[0], each * elements[1],
                                          each * elements[2], each * elements[3], 8 * sums};
    for (size_t i = 0; i < sizes.size(); ++i) {
      begin[i] = size;
      size += conv_aligned(sizes[i]);
    }
    bytes = torch::stable::empty({workers, size}, ScalarType::Byte, std::nullopt, like.device());
  }

  // Called by one thread per worker, which clears the packed tensors at its first item.
  ConvDirectScratch of(int64_t worker) {
    char* base = static_cast<char*>(bytes.mutable_data_ptr()) + worker * size;
    if (!cleared[worker]) std::memset(base + begin[1], 0, begin[3] - begin[1]);
    cleared[worker] = 1;
    const auto at = [&](int i) { return static_cast<void*>(base + begin[i]); };
    return {static_cast<int64_t*>(at(0)), at(1), at(2), at(3), at(4), static_cast<double*>(at(5))};
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

int64_t most_taps(const Plan& plan) {
  int64_t taps = plan.shape.src.count;
  for (const auto& runs : plan.runs)
    taps *= std::max_element(runs.begin(), runs.end(), [](auto& a, auto& b) { return a.taps < b.taps; })->taps;
  const auto less = [](const ConvLine& a, const ConvLine& b) { return a.taps < b.taps; };
  return taps * std::max_element(plan.lines.begin(), plan.lines.end(), less)->taps;
}

}  // namespace

Tensor conv_direct(const core::Problem& p, const Tensor& src, const Tensor& weight, const std::optional<Tensor>& bias,
                   const std::vector<int64_t>& out_size, bool channels_last) {
  Tensor out = empty(out_size, src, channels_last);
  if (out.numel() == 0) return out;
  const ScalarType dtype = src.scalar_type(), compute = compute_dtype(dtype);
  const Tensor in = channels_last ? conv_channels_last(src) : dense(src, false);
  const Tensor w = pack_weight(p, weight, channels_last, compute);
  const std::optional<Tensor> b = bias ? std::optional(dense(*bias, false)) : std::nullopt;
  Plan plan;
  make_plan(plan, p, in, channels_last);
  const ConvDirectShape& s = plan.shape;
  const ConvDirectArgs args{s, out.mutable_data_ptr(), w.const_data_ptr(), b ? b->const_data_ptr() : nullptr};
  const int64_t items = s.n * s.blocks * s.bands, taps = most_taps(plan);
  // For all vectors with different weights.
  const int64_t lanes = channels_last ? kConvDirectBlock + kConvDirectLanes : kConvDirectLanes * plan.lines[0].period;
  const int64_t line = (s.dst_size[2] + kConvDirectLanes) * (channels_last ? kConvDirectLanes : 1);
  Scratch scratch(conv_workers(items), compute, taps,
                  {packed_elements(s.src, channels_last), 0, (taps + 1) * lanes, line}, 0, src);
  const auto kernel = ATROUSOPS_SELECT(conv_direct);
  const int64_t step = std::max<int64_t>(1, 16384 * items / (out.numel() * std::max<int64_t>(1, taps)));
  conv_each((items + step - 1) / step, [&](int64_t block, int64_t worker) {
    const ConvDirectScratch own = scratch.of(worker);
    for (int64_t item = block * step; item < std::min(block * step + step, items); ++item) kernel(args, own, item);
  });
  return out;
}

// The part of the gradient's last axis that some tap reads: other windows lie in padding, where the gradient may be
// NaN.
static std::vector<ConvPiece> positions_read(const core::Problem& p) {
  std::vector<ConvPiece> all;
  const std::vector<core::AxisPhase> phases = core::axis_phases(core::Kind::weight_grad, p.axis[2]);
  for (const core::AxisSegment& s : phases[0].segments)
    if (s.taps() > 0 && !all.empty() && all.back().begin + all.back().count == s.begin)
      all.back().count += s.length();
    else if (s.taps() > 0)
      all.push_back({s.begin, 1, s.begin, 1, s.length()});
  return all;
}

Tensor conv_direct_weight(const core::Problem& p, const Tensor& grad, const Tensor& input,
                          const std::vector<int64_t>& out_size) {
  if (p.n == 0 || p.c == 0) return torch::stable::new_zeros(input, out_size);
  const bool channels_last = prefers_channels_last(input);
  const ScalarType dtype = input.scalar_type(), compute = compute_dtype(dtype);
  const Tensor g = channels_last ? conv_channels_last(grad) : dense(grad, false), x = dense(input, channels_last);
  Plan plan;
  make_plan(plan, p, x, channels_last);
  const ConvDirectShape& s = plan.shape;
  int64_t rows = 0;
  for (const ConvBand& b : plan.bands) rows = std::max(rows, b.end - b.begin);
  const std::vector<ConvPiece> read = positions_read(p);
  ConvDirectWeightArgs args{s, {}, nullptr, 1};
  args.grad = {g.const_data_ptr(),
               s.dst_count,
               {s.dst_size[0], s.dst_size[1], s.dst_size[2]},
               rows,
               s.dst_size[2] + (channels_last ? 0 : kConvDirectLanes),
               read.data(),
               static_cast<int64_t>(read.size())};
  // Slices give enough items for any pool; their number does not depend on its size.
  args.slices = std::clamp<int64_t>(64 / s.blocks, 1, std::clamp<int64_t>(s.n * s.bands, 1, 16));
  const int64_t taps = product(s.kernel), channels = s.dst_count * s.src.count, each = channels * taps;
  const Tensor part = torch::stable::empty({args.slices, p.groups, each}, compute, std::nullopt, input.device());
  args.part = part.mutable_data_ptr();
  const int64_t items = args.slices * s.blocks;
  const int64_t lanes = kConvDirectLanes + (channels_last ? kConvDirectBlock : 0);
  Scratch scratch(conv_workers(items), compute, 2 * taps,
                  {packed_elements(s.src, channels_last), packed_elements(args.grad, channels_last), 0, 0},
                  each * lanes, input);
  const auto kernel = ATROUSOPS_SELECT(conv_direct_weight);
  conv_each(items, [&](int64_t item, int64_t worker) { kernel(args, scratch.of(worker), item); });
  if (!channels_last)
    return conv_weight_from(part, args.slices, {p.k, 1, each / s.dst_count}, {each / s.dst_count, 0, 1}, {0}, out_size,
                            dtype);
  std::vector<int64_t> in_order(taps);
  std::iota(in_order.begin(), in_order.end(), 0);
  return conv_weight_from(part, args.slices, {channels, taps, p.groups}, {taps, 1, each}, in_order, out_size, dtype);
}

}  // namespace atrousops::cpu
