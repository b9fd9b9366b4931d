// Convolution with few channels a group, in both directions. A vector holds groups in channels_last and positions along
// W in planes; both run over the same packed bands.
#include "cpu/kernels/conv_direct_pack.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

// Rows of vectors: out[v] = weight[0] + sum over taps of src[v + offset] * weight[1 + tap]; weight[0] is the bias.
template <class C>
struct Rows {
  const C* src;
  C* out;
  int64_t count, src_row, out_row;
  int64_t vectors, step, out_step;  // elements from one vector to the next
  int64_t back;                     // by how much the last one is shifted back
  const int64_t* offset;
  const C* weight;
  int64_t taps;
};

constexpr int kTile = 8;

// V vectors at a time, so many that additions need not wait for each other. S: the step, where it is
// known. Not inlined: it needs all registers for itself.
template <int V, int64_t S, class C>
[[gnu::noinline]] static void tile(const Rows<C>& r, int64_t first, int64_t back) {
  constexpr int64_t L = kLanes<C>;
  const int64_t step = S > 0 ? S : r.step;
  const C* src = r.src + first * step;
  C* out = r.out + first * r.out_step;
  for (int64_t i = 0; i < r.count; ++i, src += r.src_row, out += r.out_row) {
    lanes_t<C> sum[V], x, w;
    load_lanes(r.weight, w);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[v] = w;
    for (int64_t t = 0; t < r.taps; ++t) {
      const C* at = src + r.offset[t];
      load_lanes(r.weight + (t + 1) * L, w);
#pragma GCC unroll 8
      for (int v = 0; v < V - 1; ++v) {
        load_lanes(at + v * step, x);
        sum[v] += x * w;
      }
      load_lanes(at + (V - 1) * step - back, x);
      sum[V - 1] += x * w;
    }
#pragma GCC unroll 8
    for (int v = 0; v < V - 1; ++v) store_lanes(out + v * r.out_step, sum[v]);
    store_lanes(out + (V - 1) * r.out_step - back, sum[V - 1]);
  }
}

template <int V, class C>
static void tile_of(int64_t vectors, const Rows<C>& r, int64_t first, int64_t back) {
  if (vectors < V) {
    if constexpr (V > 1) tile_of<V - 1>(vectors, r, first, back);
  } else if (r.step == kLanes<C>) {
    tile<V, kLanes<C>>(r, first, back);
  } else if (r.step == kConvDirectBlock) {
    tile<V, kConvDirectBlock>(r, first, back);
  } else {
    tile<V, 0>(r, first, back);
  }
}

// Tiles of about the same width; `widest` of them have one vector more.
template <class C>
static void run_rows(const Rows<C>& r) {
  const uint32_t all = static_cast<uint32_t>(r.vectors), tiles = (all + kTile - 1) / kTile;
  const uint32_t width = tiles == 1 ? all : all / tiles, widest = all - width * tiles;
  for (uint32_t i = 0, first = 0; i < tiles; ++i) {
    const uint32_t vectors = width + (i < widest ? 1 : 0);
    tile_of<kTile>(vectors, r, first, i + 1 == tiles ? r.back : 0);
    first += vectors;
  }
}

// One item's packed source and one channel of its groups' results.
template <class T>
struct Job {
  using C = compute_t<T>;
  const ConvDirectArgs& a;
  const ConvDirectScratch& scratch;
  const ConvBand& band;
  const ConvGroups<C>& groups;
  int64_t src_row, src_slab;
  T* dst;
  int64_t j;
};

// Offsets of the live taps of two runs and a line.
template <class T>
static int64_t list_offsets(const Job<T>& job, const ConvRun& r0, const ConvRun& r1, const ConvLine& line) {
  const ConvDirectShape& s = job.a.shape;
  const int64_t unit = s.channels_last ? kConvDirectBlock : 1;
  int64_t n = 0;
  for (int64_t i = 0; i < s.src.count; ++i)
    for (int64_t t0 = 0; t0 < r0.taps; ++t0)
      for (int64_t t1 = 0; t1 < r1.taps; ++t1) {
        const int64_t x0 = r0.q0 + r0.delta[t0], x1 = r1.q0 + r1.delta[t1] - job.band.src_begin;
        const int64_t at = (i * s.src.size[0] + x0) * job.src_slab + x1 * job.src_row;
        for (int64_t t2 = 0; t2 < line.taps; ++t2) job.scratch.offset[n++] = at + line.at[t2] * unit;
      }
  return n;
}

// A vector of bias and one of weights for each tap.
template <class T>
static void list_weights(const Job<T>& job, const ConvRun& r0, const ConvRun& r1, const ConvLine& line, int64_t vector,
                         compute_t<T>* w) {
  using C = compute_t<T>;
  constexpr int64_t L = kLanes<C>;
  const ConvDirectShape& s = job.a.shape;
  const bool last = s.channels_last;
  const int64_t taps = s.kernel[0] * s.kernel[1] * s.kernel[2], lanes = last ? job.groups.lanes() : L;
  const int64_t group = job.groups.begin(last ? vector : 0), apart = last ? s.dst_count : 0;
  const T* bias = static_cast<const T*>(job.a.bias);
  for (int64_t l = 0; l < L; ++l)
    w[l] = bias == nullptr || l >= lanes ? 0 : load(bias[group * s.dst_count + job.j + l * apart]);
  w += L;
  const int64_t first = last ? job.j * s.src.count : (group * s.dst_count + job.j) * s.src.count;
  for (int64_t i = 0; i < s.src.count; ++i)
    for (int64_t t0 = 0; t0 < r0.taps; ++t0)
      for (int64_t t1 = 0; t1 < r1.taps; ++t1) {
        const int64_t row = (first + i) * taps + (r0.r[t0] * s.kernel[1] + r1.r[t1]) * s.kernel[2];
        const C* weight = static_cast<const C*>(job.a.weight) + (last ? row * s.groups + group : row);
        for (int64_t t2 = 0; t2 < line.taps; ++t2, w += L)
          for (int64_t l = 0; l < L; ++l) {
            if (last) {
              w[l] = l < lanes ? weight[line.r[t2] * s.groups + l] : 0;
            } else {
              w[l] = weight[line.r[line.period == 1 ? t2 : (vector * L + l) % line.period * line.taps + t2]];
            }
          }
      }
}

// From a line of vectors to where its results belong: positions in planes, groups of one position in channels_last.
template <class T>
static void store_line(const Job<T>& job, const ConvLine& line, const compute_t<T>* values, T* dst) {
  using C = compute_t<T>;
  const ConvDirectShape& s = job.a.shape;
  if (!s.channels_last) {
    if (line.p == 1) return store_row(values, dst, line.count);
    for (int64_t i = 0; i < line.count; ++i) store(dst + i * line.p, values[i]);
    return;
  }
  const int64_t step = line.p * s.groups * s.dst_count, lanes = job.groups.lanes();
  for (int64_t i = 0; i < line.count; ++i, values += kLanes<C>, dst += step) {
    if (s.dst_count == 1 && lanes == kLanes<C>) {
      store_lanes(dst, *reinterpret_cast<const lanes_t<C>*>(values));
    } else {
      for (int64_t l = 0; l < lanes; ++l) store(dst + l * s.dst_count, values[l]);
    }
  }
}

// Vectors that differ in their weights: of groups, or of positions until phases repeat or the line ends.
template <class C>
static int64_t kinds_of_vectors(const ConvDirectShape& s, const ConvGroups<C>& groups, const ConvLine& line,
                                int64_t vectors) {
  if (s.channels_last) return groups.vectors;
  int64_t n = 1;
  while (n < vectors && n * kLanes<C> % line.period != 0) ++n;
  return n;
}

// Whether a line's vectors may be stored where the results belong.
template <class T>
static bool in_place(const Job<T>& job, const ConvLine& line, int64_t back) {
  constexpr int64_t L = kLanes<compute_t<T>>;
  const ConvDirectShape& s = job.a.shape;
  if (!std::is_same_v<T, compute_t<T>>) return false;
  if (s.channels_last) return s.dst_count == 1 && job.groups.whole();
  // A vector that is shifted back must meet its own phases.
  return line.p == 1 && line.count >= L && (back == 0 || (L % line.period == 0 && back % line.period == 0));
}

// All rows of two runs that lie in the band.
template <class T>
static void run_line(const Job<T>& job, const ConvRun& r0, const ConvRun& r1, const ConvLine& line) {
  using C = compute_t<T>;
  constexpr int64_t L = kLanes<C>;
  const ConvDirectShape& s = job.a.shape;
  const bool last = s.channels_last;
  const int64_t begin = first_of(r1, job.band.begin), end = first_of(r1, job.band.end);
  if (begin >= end) return;
  const int64_t unit = last ? s.groups * s.dst_count : 1, row = s.dst_size[2] * unit;
  const int64_t vectors = last ? line.count : (line.count + L - 1) / L, back = last ? 0 : vectors * L - line.count;
  const int64_t kinds = kinds_of_vectors(s, job.groups, line, vectors), taps = list_offsets(job, r0, r1, line);
  C *const weight = static_cast<C*>(job.scratch.weight), *const values = static_cast<C*>(job.scratch.line);
  for (int64_t k = 0; k < kinds; ++k) list_weights(job, r0, r1, line, k, weight + k * (taps + 1) * L);
  const bool here = in_place(job, line, back);
  Rows<C> rows{nullptr,
               nullptr,
               here && !last ? end - begin : 1,
               r1.q * job.src_row,
               r1.p * row,
               0,
               last ? line.step * kConvDirectBlock : kinds * L,
               last ? (here ? line.p * unit : L) : kinds * L,
               here ? back : 0,
               job.scratch.offset,
               nullptr,
               taps};
  for (int64_t j0 = r0.begin; j0 < r0.end; ++j0)
    for (int64_t j1 = begin; j1 < end; j1 += rows.count) {
      T* const to = job.dst + ((r0.p0 + r0.p * j0) * s.dst_size[1] + r1.p0 + r1.p * j1) * row + line.p0 * unit;
      const C* src = static_cast<const C*>(job.scratch.src) + r0.q * j0 * job.src_slab + r1.q * j1 * job.src_row;
      for (int64_t k = 0; k < kinds; ++k) {
        const int64_t lane = last ? job.groups.lane(k) : k * L;
        rows.src = src + lane;
        rows.out = values + (last ? 0 : lane);
        if constexpr (std::is_same_v<T, C>)
          if (here) rows.out = to + lane;
        rows.vectors = last ? vectors : (vectors - k + kinds - 1) / kinds;
        rows.weight = weight + k * (taps + 1) * L;
        run_rows(rows);
        if (!here && last) store_line(job, line, values, to + lane * s.dst_count);
      }
      if (!here && !last) store_line(job, line, values, to);
    }
}

template <class T>
static void run_item(const ConvDirectArgs& a, const ConvDirectScratch& scratch, int64_t item) {
  using C = compute_t<T>;
  const ConvDirectShape& s = a.shape;
  const ConvBand& band = s.band[item % s.bands];
  const int64_t n = item / s.bands / s.blocks;
  const ConvGroups<C> groups(s, item / s.bands % s.blocks);
  pack_band<T>(s, s.src, groups, n, band.src_begin, band.src_end, static_cast<C*>(scratch.src));
  const int64_t row = s.src.pitch * (s.channels_last ? kConvDirectBlock : 1);
  const int64_t plane = s.dst_size[0] * s.dst_size[1] * s.dst_size[2], channels = s.groups * s.dst_count;
  for (int64_t j = 0; j < s.dst_count; ++j) {
    const int64_t channel = groups.first * s.dst_count + j;
    T* dst = static_cast<T*>(a.dst) + n * plane * channels + channel * (s.channels_last ? 1 : plane);
    const Job<T> job{a, scratch, band, groups, row, s.src.rows * row, dst, j};
    for (int64_t i = 0; i < s.runs[0]; ++i)
      for (int64_t k = 0; k < s.runs[1]; ++k)
        for (int64_t l = 0; l < s.lines; ++l) run_line(job, s.run[0][i], s.run[1][k], s.line[l]);
  }
}

void conv_direct(const ConvDirectArgs& a, const ConvDirectScratch& scratch, int64_t item) {
  dispatch_floating(a.shape.dtype, "conv", [&]<class T>() { run_item<T>(a, scratch, item); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
