// The weight gradient as GEMMs: taps that read inside for the same positions share one product; dead taps get zero.
#include <algorithm>

#include "core/phases.h"
#include "cpu/conv_gemm.h"
#include "cpu/conv_layout.h"
#include "cpu/gemm.h"

namespace atrousops::cpu {

using core::kAxes;

namespace {

constexpr int64_t kColumns = 512, kOutputs = 256;  // of one task's result
constexpr int64_t kDepth = 128;  // rows gathered, and summed, at a time: of twice as many sums round twice as much
constexpr int64_t kTasks = 16, kSlices = 16;

struct AxisGroup {
  int64_t begin, end;
  std::vector<int64_t> delta, r;
};

std::vector<AxisGroup> axis_groups(const core::AxisPhase& phase) {
  std::vector<AxisGroup> all;
  for (const core::AxisTap& t : phase.taps) {
    if (t.begin >= t.end) continue;
    if (all.empty() || all.back().begin != t.begin || all.back().end != t.end) all.push_back({t.begin, t.end, {}, {}});
    all.back().delta.push_back(phase.q0 + t.delta);
    all.back().r.push_back(t.r);
  }
  return all;
}

// Taps [first, first + offsets) of the partial results, and the rectangle they all read.
struct Group {
  ConvBox input, grad;
  int64_t rows, first;
  std::vector<int64_t> offset;  // in positions of the input
};

struct Job {
  int64_t n, groups, taps, c, k;  // c, k: channels of a group
  ScalarType dtype, gemm_dtype;
  Tensor grad, input;
  std::vector<Group> tap_groups;
  std::vector<int64_t> tap;  // kernel index of each place; dead taps last
  int64_t live = 0;
};

void add_group(Job& job, const core::Problem& p, const std::array<const AxisGroup*, kAxes>& axis) {
  Group g{{}, {}, p.n, job.live, {}};
  for (int i = 0; i < kAxes; ++i) {
    g.input.begin[i] = g.grad.begin[i] = axis[i]->begin;
    g.input.length[i] = g.grad.length[i] = axis[i]->end - axis[i]->begin;
    g.input.step[i] = p.axis[i].stride;
    g.grad.step[i] = 1;
    g.input.size[i] = p.axis[i].in;
    g.grad.size[i] = p.axis[i].out;
    g.rows *= axis[i]->end - axis[i]->begin;
  }
  for (size_t a = 0; a < axis[0]->r.size(); ++a)
    for (size_t b = 0; b < axis[1]->r.size(); ++b)
      for (size_t c = 0; c < axis[2]->r.size(); ++c) {
        g.offset.push_back((axis[0]->delta[a] * p.axis[1].in + axis[1]->delta[b]) * p.axis[2].in + axis[2]->delta[c]);
        job.tap.push_back((axis[0]->r[a] * p.axis[1].kernel + axis[1]->r[b]) * p.axis[2].kernel + axis[2]->r[c]);
      }
  job.live = static_cast<int64_t>(job.tap.size());
  job.tap_groups.push_back(std::move(g));
}

Job make_job(const core::Problem& p, const Tensor& grad, const Tensor& input) {
  const ScalarType dtype = input.scalar_type();
  Job job{p.n,
          p.groups,
          p.kernel_positions(),
          p.c / p.groups,
          p.k / p.groups,
          dtype,
          compute_dtype(dtype),
          conv_channels_last(grad),
          conv_channels_last(input),
          {},
          {}};
  const core::Phases phases = core::phases(p);
  std::array<std::vector<AxisGroup>, kAxes> axis;
  for (int i = 0; i < kAxes; ++i) axis[i] = axis_groups(phases.axis[i][0]);
  for (const AxisGroup& a : axis[0])
    for (const AxisGroup& b : axis[1])
      for (const AxisGroup& c : axis[2]) add_group(job, p, {&a, &b, &c});
  std::vector<bool> seen(job.taps, false);
  for (const int64_t t : job.tap) seen[t] = true;
  for (int64_t t = 0; t < job.taps; ++t)
    if (!seen[t]) job.tap.push_back(t);
  return job;
}

struct Task {
  const Group* taps;
  int64_t group, slice;
  int64_t row_begin, row_end, tap_begin, tap_end, c_begin, c_end, k_begin, k_end;
};

// A slice is a share of the rows with its own sum; the number of slices does not depend on the number of threads.
int64_t slice_count(const Job& job) {
  const auto parts = [](int64_t n, int64_t step) { return (n + step - 1) / step; };
  int64_t tasks = 0, rows = 0;
  for (const Group& g : job.tap_groups) {
    tasks += parts(static_cast<int64_t>(g.offset.size()) * job.c, kColumns) * parts(job.k, kOutputs) * job.groups;
    rows = std::max(rows, g.rows);
  }
  return std::clamp<int64_t>(std::min(kTasks / std::max<int64_t>(1, tasks), rows / (2 * kDepth)), 1, kSlices);
}

std::vector<Task> make_tasks(const Job& job, int64_t slices) {
  std::vector<Task> all;
  for (const Group& g : job.tap_groups) {
    const int64_t count = static_cast<int64_t>(g.offset.size());
    const int64_t taps = std::max<int64_t>(1, kColumns / job.c), channels = std::min(job.c, kColumns);
    for (int64_t slice = 0; slice < slices; ++slice)
      for (int64_t group = 0; group < job.groups; ++group)
        for (int64_t k = 0; k < job.k; k += kOutputs)
          for (int64_t t = 0; t < count; t += taps)
            for (int64_t c = 0; c < job.c; c += channels)
              all.push_back({&g, group, slice, g.rows * slice / slices, g.rows * (slice + 1) / slices, t,
                             std::min(t + taps, count), c, std::min(c + channels, job.c), k,
                             std::min(k + kOutputs, job.k)});
  }
  return all;
}

// result += block, of as many rows and columns; block's rows follow each other.
template <class C>
void add(const Matrix& result, const C* block) {
  for (int64_t i = 0; i < result.rows; ++i) {
    C* to = static_cast<C*>(const_cast<void*>(result.data)) + i * result.stride_row;
    for (int64_t j = 0; j < result.columns; ++j) to[j] += block[i * result.columns + j];
  }
}

// part: (slices, groups, k, taps, c).
void run_task(const Job& job, const Task& task, char* a, char* b, char* block, void* part) {
  const auto gather = ATROUSOPS_SELECT(conv_gather);
  const int64_t taps = task.tap_end - task.tap_begin, c = task.c_end - task.c_begin, k = task.k_end - task.k_begin;
  const int64_t place = ((task.slice * job.groups + task.group) * job.k + task.k_begin) * job.taps;
  const int64_t first = (place + task.taps->first + task.tap_begin) * job.c + task.c_begin;
  const Matrix result{at(part, first, job.gemm_dtype), k, taps * c, job.taps * job.c};
  const int64_t zero = 0;
  for (int64_t row = task.row_begin; row < task.row_end; row += kDepth) {
    const int64_t end = std::min(row + kDepth, task.row_end);
    gather({job.grad.const_data_ptr(), a, job.dtype, job.gemm_dtype, task.taps->grad, job.groups * job.k,
            task.group * job.k + task.k_begin, k, 1, k, &zero},
           row, end);
    gather({job.input.const_data_ptr(), b, job.dtype, job.gemm_dtype, task.taps->input, job.groups * job.c,
            task.group * job.c + task.c_begin, c, taps, taps * c, task.taps->offset.data() + task.tap_begin},
           row, end);
    const Matrix left = transposed({a, end - row, k, k}), right{b, end - row, taps * c, taps * c};
    if (row == task.row_begin) {
      gemm(job.gemm_dtype, left, right, result, false);
      continue;
    }
    // Not by an accumulating product: it may continue the sum internally, which then rounds more than PyTorch's.
    gemm(job.gemm_dtype, left, right, {block, k, taps * c, taps * c}, false);
    if (job.gemm_dtype == ScalarType::Double) {
      add(result, reinterpret_cast<const double*>(block));
    } else {
      add(result, reinterpret_cast<const float*>(block));
    }
  }
}

}  // namespace

Tensor conv_gemm_weight(const core::Problem& problem, const Tensor& grad, const Tensor& input,
                        const std::vector<int64_t>& out_size) {
  if (problem.n == 0 || problem.c == 0) return torch::stable::new_zeros(input, out_size);
  const Job job = make_job(problem, grad, input);
  const int64_t slices = slice_count(job);
  const std::vector<Task> tasks = make_tasks(job, slices);
  Tensor part =
      torch::stable::empty({slices, problem.k, job.taps, job.c}, job.gemm_dtype, std::nullopt, input.device());
  // Dead taps, and slices without rows of a small rectangle.
  if (job.live < job.taps || slices > 1) torch::stable::zero_(part);
  const int64_t items = static_cast<int64_t>(tasks.size()), workers = conv_workers(items);
  const int64_t columns = conv_aligned(std::min(job.taps * job.c, kColumns));
  const auto scratch = [&](int64_t rows, int64_t n) {
    return torch::stable::empty({workers, rows, n}, job.gemm_dtype, std::nullopt, input.device());
  };
  const int64_t outputs = conv_aligned(std::min(job.k, kOutputs));
  const Tensor left = scratch(kDepth, outputs), right = scratch(kDepth, columns), block = scratch(outputs, columns);
  void *left_data = left.mutable_data_ptr(), *right_data = right.mutable_data_ptr(),
       *block_data = block.mutable_data_ptr();
  void* part_data = part.mutable_data_ptr();
  conv_each(items, [&](int64_t item, int64_t worker) {
    run_task(job, tasks[item], at(left_data, worker * kDepth * outputs, job.gemm_dtype),
             at(right_data, worker * kDepth * columns, job.gemm_dtype),
             at(block_data, worker * outputs * columns, job.gemm_dtype), part_data);
  });
  return conv_weight_from(part, slices, {problem.k, job.taps, job.c}, {job.taps * job.c, 1, job.taps}, job.tap,
                          out_size, input.scalar_type());
}

}  // namespace atrousops::cpu
