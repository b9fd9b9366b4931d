// The weight gradient of convolution with few channels a group, over the packed bands of conv_direct.cpp.
#include "cpu/kernels/conv_direct_pack.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

template <class C>
using mask_t = decltype(lanes_t<C>{} == lanes_t<C>{});

// Rows of vectors of the gradient, and of the input that taps read at an offset. Of each row's last vector `lanes`
// count: behind them lie inputs that no window reads, which may be NaN.
template <class C>
struct Dots {
  const C *grad, *input;
  int64_t count, grad_row, input_row;
  int64_t vectors, grad_step, step;  // elements from one vector to the next
  int64_t lanes;
  const int64_t* offset;
};

// total[place[t]] += grad * input, lane by lane: a gradient is read once for N taps. Sums in C are kept short.
template <int N, class C>
static inline void dots(const Dots<C>& d, const int64_t* place, double* total) {
  constexpr int64_t L = kLanes<C>;
  lanes_t<C> sum[N], g, x;
  mask_t<C> live;
#pragma GCC unroll 9
  for (int t = 0; t < N; ++t) sum[t] = lanes_t<C>{};
  for (int64_t l = 0; l < L; ++l) live[l] = l < d.lanes ? -1 : 0;
  const int64_t whole = d.vectors - (d.lanes < L);
  const C *grad = d.grad, *input = d.input;
  for (int64_t i = 0; i < d.count; ++i, grad += d.grad_row, input += d.input_row) {
    for (int64_t v = 0; v < whole; ++v) {
      load_lanes(grad + v * d.grad_step, g);
#pragma GCC unroll 9
      for (int t = 0; t < N; ++t) {
        load_lanes(input + d.offset[t] + v * d.step, x);
        sum[t] += g * x;
      }
    }
    if (whole == d.vectors) continue;
    load_lanes(grad + whole * d.grad_step, g);
#pragma GCC unroll 9
    for (int t = 0; t < N; ++t) {
      load_lanes(input + d.offset[t] + whole * d.step, x);
      sum[t] += g * reinterpret_cast<lanes_t<C>>(reinterpret_cast<mask_t<C>>(x) & live);
    }
  }
  for (int t = 0; t < N; ++t) {
    double* to = total + place[t] * L;
    for (int64_t l = 0; l < L; ++l) to[l] += sum[t][l];
  }
}

constexpr int64_t kTaps = 9;

template <int N, class C>
static void dots_of(int64_t taps, const Dots<C>& d, const int64_t* place, double* total) {
  if (taps == N) {
    dots<N>(d, place, total);
  } else if constexpr (N > 1) {
    dots_of<N - 1>(taps, d, place, total);
  }
}

// sum[place[t]] += what tap t, at offset[t], sums up. A sum of kTerms rounds no more than PyTorch's does.
template <class C>
static void run_taps(const Dots<C>& all, const int64_t* offset, const int64_t* place, int64_t taps, double* sum) {
  constexpr int64_t kTerms = 64;
  const int64_t rows = kTerms / all.vectors < 1 ? 1 : kTerms / all.vectors;
  Dots<C> d = all;
  for (int64_t row = 0; row < all.count; row += rows)
    for (int64_t v = 0; v < all.vectors; v += kTerms)
      for (int64_t t = 0; t < taps; t += kTaps) {
        d.grad = all.grad + row * all.grad_row + v * all.grad_step;
        d.input = all.input + row * all.input_row + v * all.step;
        d.count = rows < all.count - row ? rows : all.count - row;
        d.vectors = kTerms < all.vectors - v ? kTerms : all.vectors - v;
        d.lanes = v + d.vectors == all.vectors ? all.lanes : kLanes<C>;
        d.offset = offset + t;
        dots_of<kTaps>(kTaps < taps - t ? kTaps : taps - t, d, place + t, sum);
      }
}

template <class C>
struct Bands {
  const ConvDirectWeightArgs& a;
  const ConvDirectScratch& scratch;
  const ConvBand& band;
  const C *grad, *input;  // of one vector, channel of grad and channel of input
};

// Rows of two runs that lie in the band.
template <class C>
static void run_line(const Bands<C>& b, const ConvRun& r0, const ConvRun& r1, double* sum) {
  const ConvDirectShape& s = b.a.shape;
  const int64_t unit = s.channels_last ? kConvDirectBlock : 1;
  const ConvLine& line = s.line[0];
  const int64_t begin = first_of(r1, b.band.begin), end = first_of(r1, b.band.end);
  if (begin >= end || line.taps == 0) return;
  const int64_t input_row = s.src.pitch * unit, input_slab = s.src.rows * input_row;
  const int64_t grad_row = b.a.grad.pitch * unit, grad_slab = b.a.grad.rows * grad_row;
  int64_t *offset = b.scratch.offset, *place = offset + s.kernel[0] * s.kernel[1] * s.kernel[2], n = 0;
  for (int64_t t0 = 0; t0 < r0.taps; ++t0)
    for (int64_t t1 = 0; t1 < r1.taps; ++t1)
      for (int64_t t2 = 0; t2 < line.taps; ++t2, ++n) {
        offset[n] = (r0.q0 + r0.delta[t0]) * input_slab + (r1.q0 + r1.delta[t1] - b.band.src_begin) * input_row +
                    line.at[t2] * unit;
        place[n] = (r0.r[t0] * s.kernel[1] + r1.r[t1]) * s.kernel[2] + line.r[t2];
      }
  constexpr int64_t L = kLanes<C>;
  const int64_t vectors = s.channels_last ? line.count : (line.count + L - 1) / L;
  const int64_t lanes = s.channels_last ? L : line.count - (vectors - 1) * L;
  for (int64_t j = r0.begin; j < r0.end; ++j)
    run_taps<C>({b.grad + j * grad_slab + (begin - b.band.begin) * grad_row,
                 b.input + r0.q * j * input_slab + r1.q * begin * input_row, end - begin, grad_row, r1.q * input_row,
                 vectors, s.channels_last ? unit : L, s.channels_last ? line.step * unit : L, lanes, nullptr},
                offset, place, n, sum);
}

// Sums of one band: [vector][k][c][tap][lane].
template <class T>
static void add_band(const ConvDirectWeightArgs& a, const ConvDirectScratch& scratch,
                     const ConvGroups<compute_t<T>>& groups, int64_t n, const ConvBand& band) {
  using C = compute_t<T>;
  const ConvDirectShape& s = a.shape;
  C *grad = static_cast<C*>(scratch.dst), *input = static_cast<C*>(scratch.src);
  pack_band<T>(s, a.grad, groups, n, band.begin, band.end, grad);
  pack_band<T>(s, s.src, groups, n, band.src_begin, band.src_end, input);
  const int64_t unit = s.channels_last ? kConvDirectBlock : 1;
  const int64_t grad_plane = a.grad.size[0] * a.grad.rows * a.grad.pitch * unit;
  const int64_t input_plane = s.src.size[0] * s.src.rows * s.src.pitch * unit;
  double* sum = scratch.sum;
  for (int64_t v = 0; v < groups.vectors; ++v)
    for (int64_t k = 0; k < a.grad.count; ++k)
      for (int64_t c = 0; c < s.src.count; ++c, sum += s.kernel[0] * s.kernel[1] * s.kernel[2] * kLanes<C>) {
        const int64_t lane = s.channels_last ? groups.lane(v) : 0;
        const Bands<C> b{a, scratch, band, grad + k * grad_plane + lane, input + c * input_plane + lane};
        for (int64_t i = 0; i < s.runs[0]; ++i)
          for (int64_t j = 0; j < s.runs[1]; ++j) run_line(b, s.run[0][i], s.run[1][j], sum);
      }
}

template <class T>
static void run_item(const ConvDirectWeightArgs& a, const ConvDirectScratch& scratch, int64_t item) {
  using C = compute_t<T>;
  constexpr int64_t L = kLanes<C>;
  const ConvDirectShape& s = a.shape;
  const int64_t slice = item / s.blocks, units = s.n * s.bands;
  const ConvGroups<C> groups(s, item % s.blocks);
  const int64_t each = a.grad.count * s.src.count * s.kernel[0] * s.kernel[1] * s.kernel[2];
  for (int64_t i = 0; i < groups.vectors * each * L; ++i) scratch.sum[i] = 0;
  for (int64_t unit = units * slice / a.slices; unit < units * (slice + 1) / a.slices; ++unit)
    add_band<T>(a, scratch, groups, unit / s.bands, s.band[unit % s.bands]);
  C* part = static_cast<C*>(a.part) + slice * s.groups * each;
  for (int64_t v = 0; v < groups.vectors; ++v)
    for (int64_t i = 0; i < each; ++i) {
      const double* sum = scratch.sum + (v * each + i) * L;
      if (s.channels_last) {
        for (int64_t l = 0; l < groups.lanes(); ++l) part[i * s.groups + groups.begin(v) + l] = static_cast<C>(sum[l]);
        continue;
      }
      double total = 0;
      for (int64_t l = 0; l < L; ++l) total += sum[l];
      part[groups.first * each + i] = static_cast<C>(total);
    }
}

void conv_direct_weight(const ConvDirectWeightArgs& a, const ConvDirectScratch& scratch, int64_t item) {
  dispatch_floating(a.shape.dtype, "conv", [&]<class T>() { run_item<T>(a, scratch, item); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
