// Dense convolution as GEMMs over live regions: no dead tap is multiplied, and no tap is rounded on its own.
#include "cpu/conv_gemm.h"

#include <algorithm>
#include <functional>

#include "core/checked.h"
#include "core/gemm_rows.h"
#include "core/phases.h"
#include "cpu/conv_layout.h"
#include "cpu/gemm.h"

namespace atrousops::cpu {

using core::kAxes;

namespace {

constexpr int64_t kRows = core::kGemmRows, kColumns = core::kGemmColumns;
// The length of a sum in one GEMM, at least a tap: shorter sums, accumulated in the same result, round less than a long
// one.
constexpr int64_t kDepth = 64;
constexpr int64_t kScratch = int64_t{4} << 20;  // bytes of gathered rows a worker
constexpr int64_t kTasks = 8;

// The phases of one axis that have the same live taps at the same positions: their results come from the same rows.
struct AxisBlock {
  int64_t begin, end, p, q;
  std::vector<int64_t> read;            // source offset of each tap
  std::vector<int64_t> write;           // destination offset of each phase
  std::vector<std::vector<int64_t>> r;  // [phase][tap] kernel coordinate
};

std::vector<AxisBlock> axis_blocks(const std::vector<core::AxisPhase>& phases) {
  std::vector<AxisBlock> all;
  for (const core::AxisPhase& phase : phases)
    for (const core::AxisSegment& s : phase.segments) {
      if (s.length() == 0) continue;
      AxisBlock b{s.begin, s.end, phase.p, phase.q, {}, {phase.p0}, {{}}};
      for (int64_t t = s.tap_begin; t < s.tap_end; ++t) {
        b.read.push_back(phase.q0 + phase.taps[t].delta);
        b.r[0].push_back(phase.taps[t].r);
      }
      const auto same = std::find_if(all.begin(), all.end(), [&](const AxisBlock& o) {
        return o.begin == b.begin && o.end == b.end && o.read == b.read;
      });
      if (same == all.end()) {
        all.push_back(b);
      } else {
        same->write.push_back(b.write[0]);
        same->r.push_back(b.r[0]);
      }
    }
  return all;
}

// Columns [tap_begin, tap_end) x channels of a block's operand, and their weights.
struct Piece {
  int64_t tap_begin, tap_end;
  const void* weight;  // rows (phase, k), of the first group
  int64_t ld, group_stride;
};

struct Block {
  ConvBox source, destination;
  std::vector<int64_t> read, write;  // offsets in positions: of each tap, of each phase
  std::vector<int64_t> tap;          // [phase][tap] index into the kernel
  int64_t rows = 0;
  std::vector<Piece> pieces;
  std::optional<Tensor> packed;

  int64_t taps() const { return static_cast<int64_t>(read.size()); }
  int64_t phases() const { return static_cast<int64_t>(write.size()); }
};

using Sizes = std::array<int64_t, kAxes>;

std::vector<int64_t> flat_offsets(const std::array<const std::vector<int64_t>*, kAxes>& v, const Sizes& size) {
  std::vector<int64_t> all;
  for (const int64_t a : *v[0])
    for (const int64_t b : *v[1])
      for (const int64_t c : *v[2]) all.push_back((a * size[1] + b) * size[2] + c);
  return all;
}

Block make_block(const std::array<const AxisBlock*, kAxes>& axis, int64_t n, const Sizes& source, const Sizes& dest,
                 const Sizes& kernel) {
  Block b;
  b.rows = n;
  for (int i = 0; i < kAxes; ++i) {
    const AxisBlock& a = *axis[i];
    b.source.begin[i] = b.destination.begin[i] = a.begin;
    b.source.length[i] = b.destination.length[i] = a.end - a.begin;
    b.source.step[i] = a.q;
    b.destination.step[i] = a.p;
    b.source.size[i] = source[i];
    b.destination.size[i] = dest[i];
    b.rows *= a.end - a.begin;
  }
  b.read = flat_offsets({&axis[0]->read, &axis[1]->read, &axis[2]->read}, source);
  b.write = flat_offsets({&axis[0]->write, &axis[1]->write, &axis[2]->write}, dest);
  for (const auto& r0 : axis[0]->r)
    for (const auto& r1 : axis[1]->r)
      for (const auto& r2 : axis[2]->r) {
        const auto taps = flat_offsets({&r0, &r1, &r2}, kernel);
        b.tap.insert(b.tap.end(), taps.begin(), taps.end());
      }
  return b;
}

// The whole call: sizes per group, operands in the order the GEMMs read.
struct Job {
  int64_t n, groups, taps;
  int64_t src_count, dst_count;  // channels of a group
  ScalarType dtype, gemm_dtype;
  bool one_piece;      // 16-bit GEMMs round their result: a sum may not be cut
  bool channels_last;  // of the destination: results are multiplied in its order, rows or columns contiguous
  const void* bias;    // of dtype, or null
  Tensor src, weight;  // (N, positions, channels); [group][dst][tap][src]
};

// Weights of a block with its taps side by side: [group][phase][dst][tap][src].
Tensor pack_block(const Job& job, const Block& b) {
  const int64_t bytes = job.src_count * element_size(job.gemm_dtype);
  Tensor packed = torch::stable::empty({job.groups * b.phases() * job.dst_count, b.taps() * job.src_count},
                                       job.gemm_dtype, std::nullopt, job.src.device());
  const char* src = static_cast<const char*>(job.weight.const_data_ptr());
  char* dst = static_cast<char*>(packed.mutable_data_ptr());
  const int64_t rows = job.groups * b.phases() * job.dst_count;
  const int64_t grain = 1 + 32768 / (b.taps() * bytes + 1);
  parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t k = row % job.dst_count, phase = row / job.dst_count % b.phases();
      const int64_t g = row / job.dst_count / b.phases();
      for (int64_t t = 0; t < b.taps(); ++t) {
        const int64_t from = (g * job.dst_count + k) * job.taps + b.tap[phase * b.taps() + t];
        std::copy_n(src + from * bytes, bytes, dst + (row * b.taps() + t) * bytes);
      }
    }
  });
  return packed;
}

void add_pieces(const Job& job, Block& b, int64_t first, int64_t last, const void* weight, int64_t ld,
                int64_t group_stride) {
  const int64_t step = job.one_piece ? last - first : std::max<int64_t>(1, kDepth / job.src_count);
  for (int64_t t = first; t < last; t += step)
    b.pieces.push_back(
        {t, std::min(t + step, last), at(weight, (t - first) * job.src_count, job.gemm_dtype), ld, group_stride});
}

void set_pieces(const Job& job, Block& b) {
  const int64_t taps = b.taps(), ld = job.taps * job.src_count;
  if (taps == 0) return;
  std::vector<int64_t> cuts = {0};
  for (int64_t t = 1; t < taps; ++t)
    if (b.tap[t] != b.tap[t - 1] + 1) cuts.push_back(t);
  cuts.push_back(taps);
  // Runs of neighbouring taps are read in place if there is one run, or if each is long enough for a GEMM.
  const bool in_place = b.phases() == 1 && (cuts.size() == 2 || (!job.one_piece && job.src_count >= kDepth));
  if (!in_place) {
    b.packed = pack_block(job, b);
    add_pieces(job, b, 0, taps, b.packed->const_data_ptr(), taps * job.src_count,
               b.phases() * job.dst_count * taps * job.src_count);
    return;
  }
  for (size_t i = 0; i + 1 < cuts.size(); ++i)
    add_pieces(job, b, cuts[i], cuts[i + 1],
               at(job.weight.const_data_ptr(), b.tap[cuts[i]] * job.src_count, job.gemm_dtype), ld, job.dst_count * ld);
}

std::vector<Block> make_blocks(const core::Problem& p, const Job& job) {
  const bool forward = p.kind == core::Kind::forward;
  const core::Phases phases = core::phases(p);
  Sizes source, dest, kernel;
  std::array<std::vector<AxisBlock>, kAxes> axis;
  for (int i = 0; i < kAxes; ++i) {
    source[i] = forward ? p.axis[i].in : p.axis[i].out;
    dest[i] = forward ? p.axis[i].out : p.axis[i].in;
    kernel[i] = p.axis[i].kernel;
    axis[i] = axis_blocks(phases.axis[i]);
  }
  std::vector<Block> all;
  for (const AxisBlock& a : axis[0])
    for (const AxisBlock& b : axis[1])
      for (const AxisBlock& c : axis[2]) {
        all.push_back(make_block({&a, &b, &c}, job.n, source, dest, kernel));
        set_pieces(job, all.back());
      }
  return all;
}

struct Task {
  const Block* block;
  int64_t group, row_begin, row_end, column_begin, column_end;

  double work() const { return static_cast<double>(row_end - row_begin) * (column_end - column_begin) * block->taps(); }
};

int64_t piece_taps(const Block& b) {
  int64_t most = 0;
  for (const Piece& piece : b.pieces) most = std::max(most, piece.tap_end - piece.tap_begin);
  return most;
}

// At most `most` rows if that is more than kRows, in equal parts.
int64_t rows_at_once(const Job& job, const Block& b, int64_t most, int64_t columns) {
  const int64_t size = element_size(job.gemm_dtype), row = std::max<int64_t>(1, piece_taps(b) * job.src_count * size);
  const int64_t narrow = core::rows_of_16_bits(row + std::min(columns, b.phases() * job.dst_count) * size);
  const int64_t rows = std::clamp<int64_t>(kScratch / row, 32, std::max(kRows, std::min(narrow, most)));
  return rows > kRows ? core::ceil_div(b.rows, core::ceil_div(b.rows, rows)) : rows;
}

std::vector<Task> cut_tasks(const Job& job, const std::vector<Block>& blocks, int64_t most, int64_t columns) {
  std::vector<Task> all;
  for (const Block& b : blocks) {
    const int64_t rows = rows_at_once(job, b, most, columns), width = b.phases() * job.dst_count;
    for (int64_t g = 0; g < job.groups; ++g)
      for (int64_t r = 0; r < b.rows; r += rows)
        for (int64_t c = 0; c < width; c += columns)
          all.push_back({&b, g, r, std::min(r + rows, b.rows), c, std::min(c + columns, width)});
  }
  return all;
}

// The division does not depend on the number of threads. Large tasks come first, for load balance.
std::vector<Task> make_tasks(const Job& job, const std::vector<Block>& blocks) {
  int64_t rows = job.one_piece ? 16 * kRows : kRows, columns = kColumns;
  std::vector<Task> all = cut_tasks(job, blocks, rows, columns);
  while (static_cast<int64_t>(all.size()) < kTasks && columns > 64) {
    if (rows > kRows) {
      rows /= 2;
    } else {
      columns /= 2;
    }
    all = cut_tasks(job, blocks, rows, columns);
  }
  std::stable_sort(all.begin(), all.end(), [](const Task& a, const Task& b) { return a.work() > b.work(); });
  return all;
}

// Scratch of one worker: gathered rows, then results.
struct Scratch {
  char *rows, *result;
};

// Sums of 16-bit GEMMs start from the bias, so that it is added before the single rounding.
void start_from_bias(const Job& job, const Task& task, char* result) {
  const int64_t size = element_size(job.gemm_dtype), columns = task.column_end - task.column_begin;
  const int64_t rows = task.row_end - task.row_begin;
  const auto bias = [&](int64_t c) {
    return static_cast<const char*>(job.bias) +
           (task.group * job.dst_count + (task.column_begin + c) % job.dst_count) * size;
  };
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      std::copy_n(bias(c), size, result + (job.channels_last ? r * columns + c : c * rows + r) * size);
}

void run_gemms(const Job& job, const Task& task, const Scratch& scratch) {
  const auto gather = ATROUSOPS_SELECT(conv_gather);
  const Block& b = *task.block;
  const int64_t rows = task.row_end - task.row_begin, columns = task.column_end - task.column_begin;
  bool accumulate = job.one_piece && job.bias != nullptr;
  if (accumulate) start_from_bias(job, task, scratch.result);
  for (const Piece& piece : b.pieces) {
    const int64_t taps = piece.tap_end - piece.tap_begin, depth = taps * job.src_count;
    gather({job.src.const_data_ptr(), scratch.rows, job.dtype, job.gemm_dtype, b.source, job.groups * job.src_count,
            task.group * job.src_count, job.src_count, taps, depth, b.read.data() + piece.tap_begin},
           task.row_begin, task.row_end);
    const void* weight =
        at(piece.weight, task.group * piece.group_stride + task.column_begin * piece.ld, job.gemm_dtype);
    const Matrix read{scratch.rows, rows, depth, depth}, by{weight, columns, depth, piece.ld};
    if (job.channels_last) {
      gemm(job.gemm_dtype, read, transposed(by), {scratch.result, rows, columns, columns}, accumulate);
    } else {
      gemm(job.gemm_dtype, by, transposed(read), {scratch.result, columns, rows, rows}, accumulate);
    }
    accumulate = true;
  }
}

void run_task(const Job& job, const Task& task, const Scratch& scratch, void* out) {
  const Block& b = *task.block;
  const bool live = !b.pieces.empty();
  if (live) run_gemms(job, task, scratch);
  const ConvScatterArgs args{live ? scratch.result : nullptr,
                             out,
                             live && job.one_piece ? nullptr : job.bias,
                             job.gemm_dtype,
                             job.dtype,
                             b.destination,
                             job.groups * job.dst_count,
                             task.group * job.dst_count,
                             job.dst_count,
                             task.column_begin,
                             task.column_end,
                             job.channels_last ? task.column_end - task.column_begin : task.row_end - task.row_begin,
                             b.write.data(),
                             job.channels_last};
  ATROUSOPS_SELECT(conv_scatter)(args, task.row_begin, task.row_end);
}

Job make_job(const core::Problem& p, const Tensor& src, const Tensor& weight, const void* bias, bool channels_last) {
  const bool forward = p.kind == core::Kind::forward;
  const int64_t k = p.k / p.groups, c = p.c / p.groups, taps = p.kernel_positions();
  const ScalarType dtype = src.scalar_type();
  const bool hardware = has_gemm16(dtype);
  const ScalarType gemm_dtype = hardware ? dtype : compute_dtype(dtype);
  const WeightView w = weight_view(weight, taps);
  const int64_t dst = forward ? k : c, from = forward ? c : k;
  const int64_t stride_dst = forward ? w.stride_k : w.stride_c, stride_src = forward ? w.stride_c : w.stride_k;
  const bool in_order = stride_src == 1 && w.stride_t == from && gemm_dtype == dtype;
  return {p.n,
          p.groups,
          taps,
          from,
          dst,
          dtype,
          gemm_dtype,
          hardware,
          channels_last,
          bias,
          conv_channels_last(src),
          in_order ? w.tensor
                   : conv_packed(w.tensor, {p.groups, dst, taps, from},
                                 {k * w.stride_k, stride_dst, w.stride_t, stride_src}, gemm_dtype)};
}

}  // namespace

Tensor conv_gemm(const core::Problem& problem, const Tensor& src, const Tensor& weight,
                 const std::optional<Tensor>& bias, const std::vector<int64_t>& out_size, bool channels_last) {
  Tensor out = empty(out_size, src, channels_last);
  if (out.numel() == 0) return out;
  const std::optional<Tensor> bias_row = bias ? std::optional(dense(*bias, false)) : std::nullopt;
  const Job job = make_job(problem, src, weight, bias_row ? bias_row->const_data_ptr() : nullptr, channels_last);
  const std::vector<Block> blocks = make_blocks(problem, job);
  const std::vector<Task> tasks = make_tasks(job, blocks);
  int64_t row_elements = 0, result_elements = 0;
  for (const Task& t : tasks) {
    const int64_t rows = t.row_end - t.row_begin;
    row_elements = std::max(row_elements, rows * piece_taps(*t.block) * job.src_count);
    result_elements = std::max(result_elements, rows * (t.column_end - t.column_begin));
  }
  row_elements = conv_aligned(row_elements);
  result_elements = conv_aligned(result_elements);
  const int64_t items = static_cast<int64_t>(tasks.size()), workers = conv_workers(items);
  const auto scratch = [&](int64_t elements) {
    return torch::stable::empty({workers, elements}, job.gemm_dtype, std::nullopt, src.device());
  };
  const Tensor rows = scratch(row_elements), results = scratch(result_elements);
  char *row_data = static_cast<char*>(rows.mutable_data_ptr()),
       *result_data = static_cast<char*>(results.mutable_data_ptr());
  void* const out_data = out.mutable_data_ptr();
  conv_each(items, [&](int64_t item, int64_t worker) {
    const Scratch own{at(row_data, worker * row_elements, job.gemm_dtype),
                      at(result_data, worker * result_elements, job.gemm_dtype)};
    run_task(job, tasks[item], own, out_data);
  });
  return out;
}

}  // namespace atrousops::cpu
