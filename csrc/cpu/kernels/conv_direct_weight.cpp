// The weight gradient of convolution with few channels a group.
#include "cpu/conv.h"
#include "cpu/lanes.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

// One line of positions and one tap: sum[c] += grad[o][c] * input[q * o][c], V vectors of groups at a time.
template <int V, class T>
static inline void channels_tap(const T* grad, const T* input, int64_t channels, int64_t q, int64_t count,
                                compute_t<T>* sum) {
  using C = compute_t<T>;
  lanes_t<C> s[V], g, x;
  for (int v = 0; v < V; ++v) load_lanes(sum + v * kLanes<C>, s[v]);
  for (int64_t o = 0; o < count; ++o)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      load_lanes(grad + o * channels + v * kLanes<C>, g);
      load_lanes(input + o * q * channels + v * kLanes<C>, x);
      s[v] += g * x;
    }
  for (int v = 0; v < V; ++v) store_lanes(sum + v * kLanes<C>, s[v]);
}

// Any number of channels a group; part is [j][i][tap][group].
template <class T>
static void channels_tap_general(const ConvDirectWeightArgs& a, const T* grad, const T* input, int64_t count,
                                 int64_t first, int64_t last, int64_t place, compute_t<T>* part) {
  const int64_t kernel_taps = a.kernel[0] * a.kernel[1] * a.kernel[2];
  const int64_t k = a.groups * a.k_count, c = a.groups * a.c_count;
  for (int64_t o = 0; o < count; ++o)
    for (int64_t j = 0; j < a.k_count; ++j)
      for (int64_t i = 0; i < a.c_count; ++i) {
        compute_t<T>* sum = part + ((j * a.c_count + i) * kernel_taps + place) * a.groups;
        const T *g = grad + o * k + j, *x = input + o * a.stride[2] * c + i;
        for (int64_t group = first; group < last; ++group)
          sum[group] += load(g[group * a.k_count]) * load(x[group * a.c_count]);
      }
}

template <class T>
static void channels_line(const ConvDirectWeightArgs& a, const T* grad, const T* input, int64_t count, int64_t first,
                          int64_t last, int64_t place, compute_t<T>* part) {
  using C = compute_t<T>;
  if (a.c_count != 1 || a.k_count != 1) return channels_tap_general(a, grad, input, count, first, last, place, part);
  C* sum = part + place * a.groups;
  int64_t c = first;
  for (; c + 4 * kLanes<C> <= last; c += 4 * kLanes<C>)
    channels_tap<4>(grad + c, input + c, a.groups, a.stride[2], count, sum + c);
  for (; c + kLanes<C> <= last; c += kLanes<C>)
    channels_tap<1>(grad + c, input + c, a.groups, a.stride[2], count, sum + c);
  for (; c < last; ++c)
    for (int64_t o = 0; o < count; ++o)
      sum[c] += load(grad[o * a.groups + c]) * load(input[o * a.stride[2] * a.groups + c]);
}

// Every tap of one line (n, o0, o1) that reads inside.
template <class T>
static void channels_row(const ConvDirectWeightArgs& a, int64_t row, int64_t first, int64_t last, compute_t<T>* part) {
  const int64_t o1 = row % a.out[1], o0 = row / a.out[1] % a.out[0], n = row / a.out[1] / a.out[0];
  const int64_t k = a.groups * a.k_count, c = a.groups * a.c_count;
  const T* grad = static_cast<const T*>(a.grad) + row * a.out[2] * k;
  const T* input = static_cast<const T*>(a.input);
  for (int64_t i = 0; i < a.kernel[0]; ++i)
    for (int64_t j = 0; j < a.kernel[1]; ++j) {
      const ConvTapRange &t0 = a.tap[0][i], &t1 = a.tap[1][j];
      if (o0 < t0.begin || o0 >= t0.end || o1 < t1.begin || o1 >= t1.end) continue;
      const int64_t line =
          ((n * a.in[0] + o0 * a.stride[0] + t0.delta) * a.in[1] + o1 * a.stride[1] + t1.delta) * a.in[2];
      for (int64_t l = 0; l < a.kernel[2]; ++l) {
        const ConvTapRange& t2 = a.tap[2][l];
        if (t2.begin >= t2.end) continue;
        channels_line(a, grad + t2.begin * k, input + (line + t2.begin * a.stride[2] + t2.delta) * c, t2.end - t2.begin,
                      first, last, (t0.r * a.kernel[1] + t1.r) * a.kernel[2] + t2.r, part);
      }
    }
}

void conv_direct_weight_channels_last(const ConvDirectWeightArgs& a, int64_t item) {
  const int64_t blocks = (a.groups + kConvDirectBlock - 1) / kConvDirectBlock;
  const int64_t slice = item / blocks, first = item % blocks * kConvDirectBlock;
  const int64_t last = first + kConvDirectBlock < a.groups ? first + kConvDirectBlock : a.groups;
  const int64_t rows = a.n * a.out[0] * a.out[1];
  const int64_t size = a.kernel[0] * a.kernel[1] * a.kernel[2] * a.groups * a.k_count * a.c_count;
  dispatch_floating(a.dtype, "conv", [&]<class T>() {
    compute_t<T>* part = static_cast<compute_t<T>*>(a.part) + slice * size;
    for (int64_t row = rows * slice / a.slices; row < rows * (slice + 1) / a.slices; ++row)
      channels_row<T>(a, row, first, last, part);
  });
}

// Vector lanes and what is left over are summed apart, and joined in one order at the end.
template <class C>
struct Dot {
  lanes_t<C> lanes[2] = {};
  C rest = 0;

  template <int Q>
  void add(const C* g, const C* x, int64_t n, int64_t q) {
    constexpr int64_t L = kLanes<C>;
    int64_t i = 0;
    if constexpr (Q == 1) {
      lanes_t<C> a, b;
      for (; i + 2 * L <= n; i += 2 * L)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          load_lanes(g + i + v * L, a);
          load_lanes(x + i + v * L, b);
          lanes[v] += a * b;
        }
      for (; i + L <= n; i += L) {
        load_lanes(g + i, a);
        load_lanes(x + i, b);
        lanes[0] += a * b;
      }
    }
    for (; i < n; ++i) rest += g[i] * x[i * q];
  }
  double sum() const {
    double s = rest;
    for (int64_t v = 0; v < 2; ++v)
      for (int64_t i = 0; i < kLanes<C>; ++i) s += lanes[v][i];
    return s;
  }
};

// One tap over one pair of planes. Lines are joined into double now and then, so that long sums keep their digits.
template <class C>
static double plane_tap(const ConvDirectWeightArgs& a, const ConvTapRange& t0, const ConvTapRange& t1,
                        const ConvTapRange& t2, const C* grad, const C* input) {
  constexpr int64_t kLines = 64;
  double total = 0;
  Dot<C> dot;
  int64_t lines = 0;
  for (int64_t o0 = t0.begin; o0 < t0.end; ++o0)
    for (int64_t o1 = t1.begin; o1 < t1.end; ++o1) {
      const C* g = grad + (o0 * a.out[1] + o1) * a.out[2] + t2.begin;
      const C* x = input + ((o0 * a.stride[0] + t0.delta) * a.in[1] + o1 * a.stride[1] + t1.delta) * a.in[2] +
                   t2.begin * a.stride[2] + t2.delta;
      if (a.stride[2] == 1) {
        dot.template add<1>(g, x, t2.end - t2.begin, 1);
      } else {
        dot.template add<0>(g, x, t2.end - t2.begin, a.stride[2]);
      }
      if (++lines == kLines) {
        total += dot.sum();
        dot = Dot<C>();
        lines = 0;
      }
    }
  return total + dot.sum();
}

template <class T>
static void weight_planes(const ConvDirectWeightArgs& a, const ConvDirectScratch& scratch, int64_t item) {
  using C = compute_t<T>;
  const int64_t slice = item / a.groups, group = item % a.groups;
  const int64_t in_plane = a.in[0] * a.in[1] * a.in[2], out_plane = a.out[0] * a.out[1] * a.out[2];
  const int64_t kernel_taps = a.kernel[0] * a.kernel[1] * a.kernel[2], each = a.k_count * a.c_count * kernel_taps;
  C* part = static_cast<C*>(a.part) + (slice * a.groups + group) * each;
  C* copy = static_cast<C*>(scratch.values);
  for (int64_t n = a.n * slice / a.slices; n < a.n * (slice + 1) / a.slices; ++n) {
    const int64_t g_first = (n * a.groups + group) * a.k_count, x_first = (n * a.groups + group) * a.c_count;
    const C* grad = computed(static_cast<const T*>(a.grad) + g_first * out_plane, copy, a.k_count * out_plane);
    const C* input = computed(static_cast<const T*>(a.input) + x_first * in_plane, copy + a.k_count * out_plane,
                              a.c_count * in_plane);
    for (int64_t j = 0; j < a.k_count; ++j)
      for (int64_t i = 0; i < a.c_count; ++i)
        for (int64_t t = 0; t < kernel_taps; ++t) {
          const int64_t r0 = t / (a.kernel[1] * a.kernel[2]), r1 = t / a.kernel[2] % a.kernel[1], r2 = t % a.kernel[2];
          part[(j * a.c_count + i) * kernel_taps + t] += static_cast<C>(
              plane_tap(a, a.tap[0][r0], a.tap[1][r1], a.tap[2][r2], grad + j * out_plane, input + i * in_plane));
        }
  }
}

void conv_direct_weight_planes(const ConvDirectWeightArgs& a, const ConvDirectScratch& scratch, int64_t item) {
  dispatch_floating(a.dtype, "conv", [&]<class T>() { weight_planes<T>(a, scratch, item); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
