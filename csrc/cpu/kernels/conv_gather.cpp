// Copies around the GEMMs of conv_gemm.cpp: layouts, live taps' rows in, results and bias out.
#include <cstring>

#include "cpu/conv.h"
#include "cpu/lanes.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

// At least B bytes; the last B of them overlap others.
template <int64_t B>
static inline void copy_chunks(const char* __restrict src, char* __restrict dst, int64_t bytes) {
  for (int64_t i = 0; i + B < bytes; i += B) std::memcpy(dst + i, src + i, B);
  std::memcpy(dst + bytes - B, src + bytes - B, B);
}

// None, or two bytes or more. Short rows are not left to memcpy, a call of which takes longer than they do.
static inline void copy(const void* from, void* to, int64_t bytes) {
  const char* src = static_cast<const char*>(from);
  char* dst = static_cast<char*>(to);
  if (bytes >= 512) {
    std::memcpy(dst, src, bytes);
  } else if (bytes >= kLaneBytes) {
    copy_chunks<kLaneBytes>(src, dst, bytes);
  } else if (bytes >= 16) {
    copy_chunks<16>(src, dst, bytes);
  } else if (bytes >= 4) {
    copy_chunks<4>(src, dst, bytes);
  } else if (bytes > 0) {
    copy_chunks<2>(src, dst, bytes);
  }
}

template <class S, class D>
static inline void convert(const S* __restrict src, D* __restrict dst, int64_t n) {
  if constexpr (std::is_same_v<S, D>) {
    copy(src, dst, n * sizeof(S));
  } else if constexpr (std::is_same_v<D, compute_t<S>>) {
    load_row(src, dst, n);
  } else if constexpr (std::is_same_v<S, compute_t<D>>) {
    store_row(src, dst, n);
  } else {
    for (int64_t i = 0; i < n; ++i) store(dst + i, static_cast<compute_t<D>>(load(src[i])));
  }
}

// Calls f.template operator()<S, D>() for the pairs that occur: a dtype with itself, or with what it is computed in.
template <class F>
static void dispatch_pair(ScalarType s, ScalarType d, const char* op, F&& f) {
  dispatch_floating(s, op, [&]<class S>() {
    dispatch_floating(d, op, [&]<class D>() {
      constexpr bool occurs =
          std::is_same_v<S, D> || std::is_same_v<D, compute_t<S>> || std::is_same_v<S, compute_t<D>>;
      if constexpr (occurs) f.template operator()<S, D>();
    });
  });
}

template <class S, class D>
static void pack(const ConvPackArgs& a, int64_t begin, int64_t end) {
  const int64_t tiles1 = (a.sizes[1] + kConvPackTile - 1) / kConvPackTile;
  const int64_t tiles2 = (a.sizes[2] + kConvPackTile - 1) / kConvPackTile;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t i = tile / (tiles1 * tiles2);
    const int64_t j0 = tile / tiles2 % tiles1 * kConvPackTile, k0 = tile % tiles2 * kConvPackTile;
    const int64_t j1 = j0 + kConvPackTile < a.sizes[1] ? j0 + kConvPackTile : a.sizes[1];
    const int64_t k1 = k0 + kConvPackTile < a.sizes[2] ? k0 + kConvPackTile : a.sizes[2];
    const S* src = static_cast<const S*>(a.src) + i * a.strides[0];
    D* dst = static_cast<D*>(a.dst) + i * a.sizes[1] * a.sizes[2] * a.sizes[3];
    // Blocks of the last axis, so that a line read for one k is still in the cache for the next.
    for (int64_t l0 = 0; l0 < a.sizes[3]; l0 += 4 * kConvPackTile) {
      const int64_t count = a.sizes[3] - l0 < 4 * kConvPackTile ? a.sizes[3] - l0 : 4 * kConvPackTile;
      for (int64_t j = j0; j < j1; ++j)
        for (int64_t k = k0; k < k1; ++k) {
          const S* s = src + j * a.strides[1] + k * a.strides[2] + l0 * a.strides[3];
          D* d = dst + (j * a.sizes[2] + k) * a.sizes[3] + l0;
          if (a.strides[3] == 1) {
            convert(s, d, count);
          } else {
            for (int64_t l = 0; l < count; ++l) convert(s + l * a.strides[3], d + l, 1);
          }
        }
    }
  }
}

void conv_pack(const ConvPackArgs& a, int64_t begin, int64_t end) {
  dispatch_pair(a.src_dtype, a.dst_dtype, "conv", [&]<class S, class D>() { pack<S, D>(a, begin, end); });
}

// Walks the rows [begin, end) of a box as runs along the last axis: f(n, position of the run's first row, rows).
template <class F>
static inline void for_runs(const ConvBox& b, int64_t begin, int64_t end, F&& f) {
  while (begin < end) {
    const int64_t j2 = begin % b.length[2], rest = begin / b.length[2];
    const int64_t j1 = rest % b.length[1], j0 = rest / b.length[1] % b.length[0];
    const int64_t n = rest / b.length[1] / b.length[0];
    const int64_t rows = b.length[2] - j2 < end - begin ? b.length[2] - j2 : end - begin;
    const int64_t position = (b.step[0] * (b.begin[0] + j0) * b.size[1] + b.step[1] * (b.begin[1] + j1)) * b.size[2] +
                             b.step[2] * (b.begin[2] + j2);
    f(n, position, rows);
    begin += rows;
  }
}

// How many taps are read side by side, all channels of each, all along the list: they are copied at once.
static int64_t taps_together(const ConvGatherArgs& a) {
  if (a.count != a.channels) return 1;
  const auto follows = [&](int64_t t) { return a.offset[t] == a.offset[t - 1] + 1; };
  int64_t n = 1;
  while (n < a.taps && follows(n)) ++n;
  if (a.taps % n != 0) return 1;
  for (int64_t t = n + 1; t < a.taps; ++t)
    if (t % n != 0 && !follows(t)) return 1;
  return n;
}

template <class S, class D>
static void gather(const ConvGatherArgs& a, int64_t begin, int64_t end) {
  const int64_t image = a.box.size[0] * a.box.size[1] * a.box.size[2], together = taps_together(a);
  D* row = static_cast<D*>(a.dst);
  for_runs(a.box, begin, end, [&](int64_t n, int64_t position, int64_t rows) {
    const S* src = static_cast<const S*>(a.src) + (n * image + position) * a.channels + a.first;
    for (int64_t i = 0; i < rows; ++i, row += a.ld, src += a.box.step[2] * a.channels)
      for (int64_t t = 0; t < a.taps; t += together)
        convert(src + a.offset[t] * a.channels, row + t * a.count, together * a.count);
  });
}

void conv_gather(const ConvGatherArgs& a, int64_t begin, int64_t end) {
  dispatch_pair(a.src_dtype, a.dst_dtype, "conv", [&]<class S, class D>() { gather<S, D>(a, begin, end); });
}

template <class S, class D>
static void scatter_row(const ConvScatterArgs& a, const S* src, D* dst, int64_t k0, int64_t count) {
  const D* bias = static_cast<const D*>(a.bias);
  if (bias != nullptr) bias += a.first + k0;
  if (src != nullptr && bias == nullptr) {
    convert(src, dst, count);
    return;
  }
  for (int64_t k = 0; k < count; ++k) {
    const compute_t<D> sum = src == nullptr ? 0 : static_cast<compute_t<D>>(load(src[k]));
    store(dst + k, bias == nullptr ? sum : sum + static_cast<compute_t<D>>(load(bias[k])));
  }
}

// One channel of a run of rows in M phases, which are neighbours along the last axis: from M columns, `apart` elements
// from each other, to one line.
template <int M, class S, class D>
static void scatter_columns(const ConvScatterArgs& a, const S* src, int64_t apart, D* dst, int64_t k, int64_t rows) {
  using C = compute_t<D>;
  const D* bias = static_cast<const D*>(a.bias);
  const C add = bias == nullptr ? 0 : static_cast<C>(load(bias[a.first + k]));
  const int64_t step = a.box.step[2];
  for (int64_t i = 0; i < rows; ++i, dst += step)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const C sum = src == nullptr ? 0 : static_cast<C>(load(src[m * apart + i]));
      store(dst + m, bias == nullptr ? sum : sum + add);
    }
}

// Calls f.template operator()<M>() for the largest M of 8, 4, 2 and 1 that is at most `most`; returns M.
template <class F>
static int64_t with_phases(int64_t most, F&& f) {
  if (most >= 8) return f.template operator()<8>(), 8;
  if (most >= 4) return f.template operator()<4>(), 4;
  if (most >= 2) return f.template operator()<2>(), 2;
  return f.template operator()<1>(), 1;
}

// How many phases from this one on are written side by side and are whole in these columns.
static int64_t neighbours(const ConvScatterArgs& a, int64_t phase, int64_t column) {
  int64_t n = 1;
  while (column + (n + 1) * a.count <= a.column_end && a.offset[phase + n] == a.offset[phase] + n) ++n;
  return n;
}

// Channels [k, k + count) of a run of rows that begins at `at`; returns how many columns it took.
template <class S, class D>
static int64_t scatter_planes(const ConvScatterArgs& a, const S* src, D* dst, int64_t at, int64_t image, int64_t column,
                              int64_t rows) {
  const int64_t phase = column / a.count, k = column % a.count, left = a.column_end - column;
  const int64_t count = a.count - k < left ? a.count - k : left, apart = a.count * a.ld;
  dst += k * image + at + a.offset[phase];
  const int64_t phases = with_phases(count == a.count ? neighbours(a, phase, column) : 1, [&]<int M>() {
    for (int64_t c = 0; c < count; ++c)
      scatter_columns<M>(a, src == nullptr ? src : src + c * a.ld, apart, dst + c * image, k + c, rows);
  });
  return phases * count;
}

template <class S, class D>
static void scatter(const ConvScatterArgs& a, int64_t begin, int64_t end) {
  const int64_t image = a.box.size[0] * a.box.size[1] * a.box.size[2];
  const S* src = static_cast<const S*>(a.src);
  for_runs(a.box, begin, end, [&](int64_t n, int64_t position, int64_t rows) {
    D* const dst = static_cast<D*>(a.dst) + n * a.channels * image;
    for (int64_t column = a.column_begin; column < a.column_end;) {
      const int64_t c = column - a.column_begin;
      if (!a.channels_last) {
        const S* s = src == nullptr ? src : src + c * a.ld;
        column += scatter_planes(a, s, dst + a.first * image, position, image, column, rows);
        continue;
      }
      const int64_t phase = column / a.count, k = column % a.count;
      const int64_t left = a.column_end - column, count = a.count - k < left ? a.count - k : left;
      D* d = dst + (position + a.offset[phase]) * a.channels + a.first + k;
      for (int64_t i = 0; i < rows; ++i)
        scatter_row(a, src == nullptr ? src : src + i * a.ld + c, d + i * a.box.step[2] * a.channels, k, count);
      column += count;
    }
    if (src != nullptr) src += a.channels_last ? rows * a.ld : rows;
  });
}

void conv_scatter(const ConvScatterArgs& a, int64_t begin, int64_t end) {
  dispatch_pair(a.src_dtype, a.dst_dtype, "conv", [&]<class S, class D>() { scatter<S, D>(a, begin, end); });
}

template <class S, class D>
static void weight_sum(const ConvWeightSumArgs& a, int64_t begin, int64_t end) {
  const S* src = static_cast<const S*>(a.src);
  const int64_t slice = a.k * a.taps * a.c;
  for (int64_t k = begin; k < end; ++k)
    for (int64_t u = 0; u < a.taps; ++u)
      for (int64_t c = 0; c < a.c; ++c) {
        const S* s = src + (k * a.taps + u) * a.c + c;
        compute_t<S> sum = load(*s);
        for (int64_t i = 1; i < a.slices; ++i) sum += load(s[i * slice]);
        D* d = static_cast<D*>(a.dst) + k * a.stride_k + c * a.stride_c + a.tap[u] * a.stride_t;
        store(d, static_cast<compute_t<D>>(sum));
      }
}

void conv_weight_sum(const ConvWeightSumArgs& a, int64_t begin, int64_t end) {
  dispatch_pair(a.src_dtype, a.dst_dtype, "conv", [&]<class S, class D>() { weight_sum<S, D>(a, begin, end); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
