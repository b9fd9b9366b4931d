// Convolution with few channels a group, in both directions. A vector holds groups in channels_last and positions along
// W in planes; both run over the same packed bands.
#include "conv_direct_pack.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

// Rows of vectors: out[v] = start + sum over taps of src[v + offset] * weight.
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

constexpr int64_t kTile = 8;

// V vectors at a time, so many that additions need not wait for each other. S: the step, where it is
// known.
template <int V, int64_t S, class C>
static inline void tile(const Rows<C>& r, const lanes_t<C>& start, int64_t first, int64_t back) {
  constexpr int64_t L = kLanes<C>;
  const int64_t step = S > 0 ? S : r.step;
  const C* src = r.src + first * step;
  C* out = r.out + first * r.out_step;
  for (int64_t i = 0; i < r.count; ++i, src += r.src_row, out += r.out_row) {
    lanes_t<C> sum[V], x, w;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[v] = start;
    for (int64_t t = 0; t < r.taps; ++t) {
      const C* at = src + r.offset[t];
      load_lanes(r.weight + t * L, w);
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
static void tile_of(int64_t vectors, const Rows<C>& r, const lanes_t<C>& start, int64_t first, int64_t back) {
  if (vectors < V) {
    if constexpr (V > 1) tile_of<V - 1>(vectors, r, start, first, back);
  } else if (r.step == kLanes<C>) {
    tile<V, kLanes<C>>(r, start, first, back);
  } else if (r.step == kConvDirectBlock) {
    tile<V, kConvDirectBlock>(r, start, first, back);
  } else {
    tile<V, 0>(r, start, first, back);
  }
}

template <class C>
static void run_rows(const Rows<C>& r, const lanes_t<C>& start) {
  const int64_t tiles = (r.vectors + kTile - 1) / kTile;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = r.vectors * i / tiles, end = r.vectors * (i + 1) / tiles;
    tile_of<kTile>(end - first, r, start, first, end == r.vectors ? r.back : 0);
  }
}

// One item's packed source and one vector of groups with one of their results.
template <class T>
struct Job {
  using C = compute_t<T>;
  const ConvDirectArgs& a;
  const ConvDirectScratch& scratch;
  const ConvBand& band;
  int64_t n, group, lanes, j;  // lanes: groups in this vector
  const C* src;
  int64_t src_row, src_slab;
  T* dst;
  lanes_t<C> start;
};

// Offsets of the live taps of two runs and a line.
template <class T>
static int64_t list_offsets(const Job<T>& job, const ConvRun& r0, const ConvRun& r1, const ConvLine& line) {
  const int64_t unit = job.a.shape.channels_last ? kConvDirectBlock : 1;
  int64_t n = 0;
  for (int64_t i = 0; i < job.a.shape.src.count; ++i)
    for (int64_t t0 = 0; t0 < r0.taps; ++t0)
      for (int64_t t1 = 0; t1 < r1.taps; ++t1) {
        const int64_t x0 = r0.q0 + r0.delta[t0], x1 = r1.q0 + r1.delta[t1] - job.band.src_begin;
        const int64_t at = (i * job.a.shape.src.size[0] + x0) * job.src_slab + x1 * job.src_row;
        for (int64_t t2 = 0; t2 < line.taps; ++t2) job.scratch.offset[n++] = at + line.at[t2] * unit;
      }
  return n;
}

// Their weights, a vector each, for the vectors of a period.
template <class T>
static void list_weights(const Job<T>& job, const ConvRun& r0, const ConvRun& r1, const ConvLine& line,
                         int64_t patterns) {
  using C = compute_t<T>;
  constexpr int64_t L = kLanes<C>;
  const ConvDirectShape& s = job.a.shape;
  const int64_t taps = s.kernel[0] * s.kernel[1] * s.kernel[2];
  const int64_t first = s.channels_last ? job.j * s.src.count : (job.group * s.dst_count + job.j) * s.src.count;
  C* w = static_cast<C*>(job.scratch.weight);
  for (int64_t lane = 0; lane < patterns * L; lane += L)
    for (int64_t i = 0; i < s.src.count; ++i)
      for (int64_t t0 = 0; t0 < r0.taps; ++t0)
        for (int64_t t1 = 0; t1 < r1.taps; ++t1) {
          const int64_t row = (first + i) * taps + (r0.r[t0] * s.kernel[1] + r1.r[t1]) * s.kernel[2];
          const C* weight = static_cast<const C*>(job.a.weight) + (s.channels_last ? row * s.groups + job.group : row);
          for (int64_t t2 = 0; t2 < line.taps; ++t2, w += L)
            for (int64_t l = 0; l < L; ++l) {
              if (s.channels_last) {
                w[l] = l < job.lanes ? weight[line.r[t2] * s.groups + l] : 0;
              } else {
                w[l] = weight[line.r[line.period == 1 ? t2 : (lane + l) % line.period * line.taps + t2]];
              }
            }
        }
}

// From a line of vectors to where its results belong.
template <class T>
static void store_line(const Job<T>& job, const ConvLine& line, const compute_t<T>* values, T* dst) {
  constexpr int64_t L = kLanes<compute_t<T>>;
  const ConvDirectShape& s = job.a.shape;
  if (!s.channels_last) {
    if (line.p == 1) return store_row(values, dst, line.count);
    for (int64_t i = 0; i < line.count; ++i) store(dst + i * line.p, values[i]);
    return;
  }
  const int64_t step = line.p * s.groups * s.dst_count;
  for (int64_t i = 0; i < line.count; ++i, values += L, dst += step) {
    if (s.dst_count == 1 && job.lanes == L) {
      store_lanes(dst, *reinterpret_cast<const lanes_t<compute_t<T>>*>(values));
    } else {
      for (int64_t l = 0; l < job.lanes; ++l) store(dst + l * s.dst_count, values[l]);
    }
  }
}

template <class C>
static int64_t patterns(const ConvLine& line) {
  int64_t n = 1;
  while (n * kLanes<C> % line.period != 0) ++n;
  return n;
}

// Whether a line's vectors may be stored where the results belong.
template <class T>
static bool in_place(const Job<T>& job, const ConvLine& line, int64_t back) {
  const ConvDirectShape& s = job.a.shape;
  if (!std::is_same_v<T, compute_t<T>>) return false;
  if (s.channels_last) return s.dst_count == 1 && job.lanes == kLanes<compute_t<T>>;
  // A vector that is shifted back must meet its own phases.
  const bool same = back == 0 || kLanes<compute_t<T>> % line.period == 0;
  return line.p == 1 && line.count >= kLanes<compute_t<T>> && back % line.period == 0 && same;
}

// All rows of two runs that lie in the band.
template <class T>
static void run_line(const Job<T>& job, const ConvRun& r0, const ConvRun& r1, const ConvLine& line) {
  using C = compute_t<T>;
  constexpr int64_t L = kLanes<C>;
  const ConvDirectShape& s = job.a.shape;
  const int64_t begin = first_of(r1, job.band.begin), end = first_of(r1, job.band.end);
  if (begin >= end) return;
  const int64_t unit = s.channels_last ? s.groups * s.dst_count : 1, row = s.dst_size[2] * unit;
  const int64_t vectors = s.channels_last ? line.count : (line.count + L - 1) / L, back = vectors * L - line.count;
  const bool here = in_place(job, line, s.channels_last ? 0 : back);
  int64_t patterns = 1;
  while (patterns * L % line.period != 0) ++patterns;
  const int64_t taps = list_offsets(job, r0, r1, line);
  list_weights(job, r0, r1, line, patterns);
  const int64_t out_step = s.channels_last && here ? line.p * unit : L;
  Rows<C> rows{nullptr,
               nullptr,
               here ? end - begin : 1,
               r1.q * job.src_row,
               r1.p * row,
               0,
               s.channels_last ? line.step * kConvDirectBlock : patterns * L,
               out_step * patterns,
               here && !s.channels_last ? back : 0,
               job.scratch.offset,
               nullptr,
               taps};
  C* const values = static_cast<C*>(job.scratch.line);
  for (int64_t j0 = r0.begin; j0 < r0.end; ++j0)
    for (int64_t j1 = begin; j1 < end; j1 += rows.count) {
      T* to = job.dst + ((r0.p0 + r0.p * j0) * s.dst_size[1] + r1.p0 + r1.p * j1) * row + line.p0 * unit;
      const C* src = job.src + r0.q * j0 * job.src_slab + r1.q * j1 * job.src_row;
      C* out = values;
      if constexpr (std::is_same_v<T, C>) out = here ? to : values;
      for (int64_t pattern = 0; pattern < patterns && pattern < vectors; ++pattern) {
        rows.src = src + pattern * L;
        rows.out = out + pattern * out_step;
        rows.vectors = (vectors - pattern + patterns - 1) / patterns;
        rows.weight = static_cast<const C*>(job.scratch.weight) + pattern * taps * L;
        run_rows(rows, job.start);
      }
      if (!here) store_line(job, line, values, to);
    }
}

template <class T>
static void run_vector(Job<T>& job) {
  const ConvDirectShape& s = job.a.shape;
  const int64_t channels = s.groups * s.dst_count, image = s.dst_size[0] * s.dst_size[1] * s.dst_size[2] * channels;
  const T* bias = static_cast<const T*>(job.a.bias);
  for (job.j = 0; job.j < s.dst_count; ++job.j) {
    const int64_t channel = job.group * s.dst_count + job.j;
    job.dst = static_cast<T*>(job.a.dst) + job.n * image + channel * (s.channels_last ? 1 : image / channels);
    job.start = lanes_t<compute_t<T>>{};
    if (bias != nullptr)
      for (int64_t l = 0; l < kLanes<compute_t<T>>; ++l)
        job.start[l] = load(bias[channel + (s.channels_last && l < job.lanes ? l * s.dst_count : 0)]);
    for (int64_t i = 0; i < s.runs[0]; ++i)
      for (int64_t k = 0; k < s.runs[1]; ++k)
        for (int64_t l = 0; l < s.lines; ++l) run_line(job, s.run[0][i], s.run[1][k], s.line[l]);
  }
}

template <class T>
static void run_item(const ConvDirectArgs& a, const ConvDirectScratch& scratch, int64_t item) {
  using C = compute_t<T>;
  const ConvDirectShape& s = a.shape;
  const ConvBand& band = s.band[item % s.bands];
  const int64_t n = item / s.bands / s.blocks;
  const ConvGroups<C> groups(s, item / s.bands % s.blocks);
  C* const src = static_cast<C*>(scratch.src);
  pack_band<T>(s, s.src, groups, n, band.src_begin, band.src_end, src);
  const int64_t row = s.src.pitch * (s.channels_last ? kConvDirectBlock : 1), slab = s.src.rows * row;
  for (int64_t v = 0; v < groups.vectors; ++v) {
    Job<T> job{a, scratch, band, n, groups.begin(v), groups.lanes(), 0, src + groups.lane(v), row, slab, nullptr, {}};
    run_vector(job);
  }
}

void conv_direct(const ConvDirectArgs& a, const ConvDirectScratch& scratch, int64_t item) {
  dispatch_floating(a.shape.dtype, "conv", [&]<class T>() { run_item<T>(a, scratch, item); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
