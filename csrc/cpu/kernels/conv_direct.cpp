// Convolution with few channels a group, in both directions: vectorised along groups in channels_last, along W in
// planes.
#include "cpu/conv.h"
#include "cpu/lanes.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

// The run of destination position `at`, and its lattice position.
static inline const ConvRun& find_run(const ConvRun* run, int64_t at, int64_t& j) {
  for (;; ++run) {
    const int64_t from = at - run->p0;
    if (from < 0 || from % run->p != 0) continue;
    j = from / run->p;
    if (j >= run->begin && j < run->end) return *run;
  }
}

// Live taps of one line: where each reads, relative to the line's first source element, and its place in the kernel.
// `unit` is the distance of neighbouring positions along the last axis.
static int64_t list_taps(const ConvDirectArgs& a, const ConvRun& r0, int64_t j0, const ConvRun& r1, int64_t j1,
                         const ConvRun& r2, int64_t unit, int64_t* source, int64_t* place) {
  int64_t n = 0;
  for (int64_t t0 = 0; t0 < r0.taps; ++t0)
    for (int64_t t1 = 0; t1 < r1.taps; ++t1) {
      const int64_t s0 = r0.q0 + r0.q * j0 + r0.delta[t0], s1 = r1.q0 + r1.q * j1 + r1.delta[t1];
      const int64_t line = (s0 * a.src_size[1] + s1) * a.src_size[2];
      const int64_t kernel_line = (r0.r[t0] * a.kernel[1] + r1.r[t1]) * a.kernel[2];
      for (int64_t t2 = 0; t2 < r2.taps; ++t2, ++n) {
        source[n] = (line + r2.q0 + r2.delta[t2]) * unit;
        place[n] = kernel_line + r2.r[t2];
      }
    }
  return n;
}

template <class T>
struct Line {  // one destination line of one run in channels_last
  const T* src;
  T* dst;
  const compute_t<T>* weight;
  const T* bias;
  const int64_t *source, *place;
  int64_t taps, groups, count, src_step, dst_step;
};

// V vectors of groups at a time.
template <int V, class T>
static inline void channels_line(const Line<T>& l, int64_t c) {
  using C = compute_t<T>;
  lanes_t<C> start[V], x, w;
  for (int v = 0; v < V; ++v) {
    start[v] = lanes_t<C>{};
    if (l.bias != nullptr) load_lanes(l.bias + c + v * kLanes<C>, start[v]);
  }
  for (int64_t j = 0; j < l.count; ++j) {
    lanes_t<C> sum[V];
    for (int v = 0; v < V; ++v) sum[v] = start[v];
    const T* src = l.src + j * l.src_step + c;
    for (int64_t t = 0; t < l.taps; ++t)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        load_lanes(src + l.source[t] + v * kLanes<C>, x);
        load_lanes(l.weight + l.place[t] * l.groups + c + v * kLanes<C>, w);
        sum[v] += x * w;
      }
    for (int v = 0; v < V; ++v) store_lanes(l.dst + j * l.dst_step + c + v * kLanes<C>, sum[v]);
  }
}

template <class T>
static void channels_line_rest(const Line<T>& l, int64_t c) {
  for (int64_t j = 0; j < l.count; ++j)
    for (int64_t g = c; g < l.groups; ++g) {
      compute_t<T> sum = l.bias == nullptr ? 0 : load(l.bias[g]);
      for (int64_t t = 0; t < l.taps; ++t)
        sum += load(l.src[j * l.src_step + l.source[t] + g]) * l.weight[l.place[t] * l.groups + g];
      store(l.dst + j * l.dst_step + g, sum);
    }
}

// Any number of channels a group: [j][i][tap][group] weights, channels strided by the group's size.
template <class T>
static void channels_line_general(const ConvDirectArgs& a, const Line<T>& l, int64_t kernel_taps) {
  for (int64_t p = 0; p < l.count; ++p)
    for (int64_t j = 0; j < a.dst_count; ++j)
      for (int64_t g = 0; g < a.groups; ++g) {
        compute_t<T> sum = l.bias == nullptr ? 0 : load(l.bias[g * a.dst_count + j]);
        const T* src = l.src + p * l.src_step + g * a.src_count;
        for (int64_t t = 0; t < l.taps; ++t)
          for (int64_t i = 0; i < a.src_count; ++i)
            sum += load(src[l.source[t] + i]) *
                   l.weight[((j * a.src_count + i) * kernel_taps + l.place[t]) * a.groups + g];
        store(l.dst + p * l.dst_step + g * a.dst_count + j, sum);
      }
}

template <class T>
static void channels_last_row(const ConvDirectArgs& a, const ConvDirectScratch& scratch, int64_t row) {
  using C = compute_t<T>;
  const int64_t src_channels = a.groups * a.src_count, dst_channels = a.groups * a.dst_count;
  const int64_t kernel_taps = a.kernel[0] * a.kernel[1] * a.kernel[2];
  int64_t *source = scratch.taps, *place = scratch.taps + kernel_taps;
  const int64_t n = row / a.dst_size[1] / a.dst_size[0];
  int64_t j0, j1;
  const ConvRun& r0 = find_run(a.run[0], row / a.dst_size[1] % a.dst_size[0], j0);
  const ConvRun& r1 = find_run(a.run[1], row % a.dst_size[1], j1);
  const T* src = static_cast<const T*>(a.src) + n * a.src_size[0] * a.src_size[1] * a.src_size[2] * src_channels;
  T* dst = static_cast<T*>(a.dst) + row * a.dst_size[2] * dst_channels;
  for (int64_t i = 0; i < a.runs[2]; ++i) {
    const ConvRun& r2 = a.run[2][i];
    const int64_t taps = list_taps(a, r0, j0, r1, j1, r2, src_channels, source, place);
    const Line<T> line{src + r2.q * r2.begin * src_channels,
                       dst + (r2.p0 + r2.p * r2.begin) * dst_channels,
                       static_cast<const C*>(a.weight),
                       static_cast<const T*>(a.bias),
                       source,
                       place,
                       taps,
                       a.groups,
                       r2.end - r2.begin,
                       r2.q * src_channels,
                       r2.p * dst_channels};
    if (a.src_count != 1 || a.dst_count != 1) {
      channels_line_general(a, line, kernel_taps);
      continue;
    }
    int64_t c = 0;
    for (; c + 4 * kLanes<C> <= a.groups; c += 4 * kLanes<C>) channels_line<4>(line, c);
    for (; c + kLanes<C> <= a.groups; c += kLanes<C>) channels_line<1>(line, c);
    if (c < a.groups) channels_line_rest(line, c);
  }
}

void conv_direct_channels_last(const ConvDirectArgs& a, const ConvDirectScratch& scratch, int64_t row) {
  dispatch_floating(a.dtype, "conv", [&]<class T>() { channels_last_row<T>(a, scratch, row); });
}

// V vectors of outputs along W.
template <int V, class C>
static inline void plane_vectors(const C* src, const int64_t* source, const C* weight, int64_t taps, C bias, C* out) {
  lanes_t<C> sum[V], x;
  for (int v = 0; v < V; ++v) sum[v] = lanes_t<C>{} + bias;
  for (int64_t t = 0; t < taps; ++t)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      load_lanes(src + source[t] + v * kLanes<C>, x);
      sum[v] += x * weight[t];
    }
  for (int v = 0; v < V; ++v) store_lanes(out + v * kLanes<C>, sum[v]);
}

// Q > 0: the step of the source, known when compiling.
template <int Q, class C>
static void plane_strided(const C* src, const int64_t* source, const C* weight, int64_t taps, C bias, C* out, int64_t n,
                          int64_t step) {
  constexpr int64_t kBlock = 64;
  const int64_t q = Q > 0 ? Q : step;
  for (int64_t j = 0; j < n; j += kBlock) {
    C sum[kBlock];
    const int64_t count = n - j < kBlock ? n - j : kBlock;
    for (int64_t i = 0; i < count; ++i) sum[i] = bias;
    for (int64_t t = 0; t < taps; ++t) {
      const C* s = src + source[t] + q * j;
      for (int64_t i = 0; i < count; ++i) sum[i] += s[i * q] * weight[t];
    }
    for (int64_t i = 0; i < count; ++i) out[j + i] = sum[i];
  }
}

// out[j] = bias + sum over taps of src[q * j + source] * weight.
template <class C>
static void plane_line(const C* src, const int64_t* source, const C* weight, int64_t taps, C bias, C* out, int64_t n,
                       int64_t q) {
  constexpr int64_t L = kLanes<C>;
  if (q == 2) return plane_strided<2>(src, source, weight, taps, bias, out, n, q);
  if (q != 1) return plane_strided<0>(src, source, weight, taps, bias, out, n, q);
  if (n < L) return plane_strided<1>(src, source, weight, taps, bias, out, n, q);
  int64_t j = 0;
  for (; j + 4 * L <= n; j += 4 * L) plane_vectors<4>(src + j, source, weight, taps, bias, out + j);
  for (; j + L <= n; j += L) plane_vectors<1>(src + j, source, weight, taps, bias, out + j);
  // The last ones again, shifted back: the same sums, so the same bits.
  if (j < n) plane_vectors<1>(src + n - L, source, weight, taps, bias, out + n - L);
}

template <class T>
static void plane_row(const ConvDirectArgs& a, const ConvDirectScratch& scratch, const compute_t<T>* src,
                      const compute_t<T>* weight, compute_t<T> bias, int64_t o0, int64_t o1, T* dst) {
  using C = compute_t<T>;
  const int64_t kernel_taps = a.kernel[0] * a.kernel[1] * a.kernel[2];
  const int64_t plane = a.src_size[0] * a.src_size[1] * a.src_size[2], all = kernel_taps * a.src_count;
  int64_t *source = scratch.taps, *place = scratch.taps + all;
  C *values = static_cast<C*>(scratch.values), *row = values + all;
  int64_t j0, j1;
  const ConvRun& r0 = find_run(a.run[0], o0, j0);
  const ConvRun& r1 = find_run(a.run[1], o1, j1);
  for (int64_t i = 0; i < a.runs[2]; ++i) {
    const ConvRun& r2 = a.run[2][i];
    const int64_t taps = list_taps(a, r0, j0, r1, j1, r2, 1, source, place), count = r2.end - r2.begin;
    for (int64_t c = 0; c < a.src_count; ++c)
      for (int64_t t = 0; t < taps; ++t) {
        source[c * taps + t] = source[t] + c * plane;
        values[c * taps + t] = weight[c * kernel_taps + place[t]];
      }
    T* to = dst + r2.p0 + r2.p * r2.begin;
    if constexpr (std::is_same_v<T, C>) {
      if (r2.p == 1) {
        plane_line(src + r2.q * r2.begin, source, values, taps * a.src_count, bias, to, count, r2.q);
        continue;
      }
    }
    plane_line(src + r2.q * r2.begin, source, values, taps * a.src_count, bias, row, count, r2.q);
    if (r2.p == 1) {
      for (int64_t j = 0; j < count; ++j) store(to + j, row[j]);
    } else {
      for (int64_t j = 0; j < count; ++j) store(to + j * r2.p, row[j]);
    }
  }
}

template <class T>
static void planes(const ConvDirectArgs& a, const ConvDirectScratch& scratch, int64_t item) {
  using C = compute_t<T>;
  const int64_t kernel_taps = a.kernel[0] * a.kernel[1] * a.kernel[2], all = kernel_taps * a.src_count;
  const int64_t src_plane = a.src_size[0] * a.src_size[1] * a.src_size[2];
  const int64_t dst_plane = a.dst_size[0] * a.dst_size[1] * a.dst_size[2];
  const int64_t group = item % a.groups;
  C* copy = static_cast<C*>(scratch.values) + all + a.dst_size[2];
  const C* src = computed(static_cast<const T*>(a.src) + item * a.src_count * src_plane, copy, a.src_count * src_plane);
  for (int64_t j = 0; j < a.dst_count; ++j) {
    const C* weight = static_cast<const C*>(a.weight) + (group * a.dst_count + j) * all;
    const T* bias = static_cast<const T*>(a.bias);
    const C start = bias == nullptr ? 0 : load(bias[group * a.dst_count + j]);
    T* dst = static_cast<T*>(a.dst) + (item * a.dst_count + j) * dst_plane;
    for (int64_t o0 = 0; o0 < a.dst_size[0]; ++o0)
      for (int64_t o1 = 0; o1 < a.dst_size[1]; ++o1, dst += a.dst_size[2])
        plane_row(a, scratch, src, weight, start, o0, o1, dst);
  }
}

void conv_direct_planes(const ConvDirectArgs& a, const ConvDirectScratch& scratch, int64_t item) {
  dispatch_floating(a.dtype, "conv", [&]<class T>() { planes<T>(a, scratch, item); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
