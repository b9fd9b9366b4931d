// Max-pooling. A window's maximum is found tap by tap in the order of the map, so that the first of equal values wins,
// and a NaN replaces all but a later NaN, as in PyTorch.
#include "cpu/max_pool.h"

#include <cstring>
#include <limits>

#include "cpu/lanes.h"
#include "cpu/pool_window.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

constexpr int64_t kBlock = 128;

// best = max(best, v), and marks follow. Spelled in vectors: left to itself, GCC makes a branch of the marked float
// loop. Lanes of marks are as wide as those of values, but in huge maps, where a flat position needs 64 bits.
template <class C, class M, bool kMarked>
static inline void take(const C* v, C* best, M* marks, M mark, int64_t n) {
  int64_t i = 0;
  if constexpr (sizeof(C) == sizeof(M) || !kMarked) {
    constexpr int64_t kLanes = 32 / sizeof(C);
    using Values __attribute__((vector_size(32))) = C;
    using Lanes __attribute__((vector_size(32))) = M;
    for (; i + kLanes <= n; i += kLanes) {
      Values value, b;
      std::memcpy(&value, v + i, sizeof value);
      std::memcpy(&b, best + i, sizeof b);
      const auto better = (value > b) | (value != value);
      b = better ? value : b;
      std::memcpy(best + i, &b, sizeof b);
      if constexpr (kMarked) {
        Lanes m;
        std::memcpy(&m, marks + i, sizeof m);
        m = better ? Lanes{} + mark : m;
        std::memcpy(marks + i, &m, sizeof m);
      }
    }
  }
  for (; i < n; ++i) {
    const bool better = (v[i] > best[i]) | (v[i] != v[i]);
    best[i] = better ? v[i] : best[i];
    if constexpr (kMarked) marks[i] = better ? mark : marks[i];
  }
}

template <class T>
static inline void fill(T* p, T v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = v;
}

// Element i of the row goes to place i / s of phase i % s.
template <class T>
static void split_phases(const T* __restrict row, compute_t<T>* __restrict out, int64_t n, int64_t s, int64_t pitch) {
  if (s == 1) return load_row(row, out, n);
  if (s == 2) {
    for (int64_t i = 0; i < n / 2; ++i) {
      out[i] = load(row[2 * i]);
      out[pitch + i] = load(row[2 * i + 1]);
    }
    if (n % 2) out[n / 2] = load(row[n - 1]);
    return;
  }
  for (int64_t phase = 0; phase < s; ++phase)
    for (int64_t i = phase, o = phase * pitch; i < n; i += s) out[o++] = load(row[i]);
}

template <class T, class M>
struct Pool {
  using C = compute_t<T>;
  const MaxPoolArgs& a;
  const PoolGeometry& g;
  const T* input;
  T* values;

  explicit Pool(const MaxPoolArgs& args)
      : a(args), g(args.g), input(static_cast<const T*>(args.input)), values(static_cast<T*>(args.values)) {}

  // A mark relative to the first tap of the window, counted over the whole map for indices.
  M mark(int64_t kd, int64_t kh, int64_t kw) const {
    if (a.kind == Marks::codes) return static_cast<M>((kd * g.kernel[1] + kh) * g.kernel[2] + kw);
    return static_cast<M>((kd * g.dilation[0] * g.large[1] + kh * g.dilation[1]) * g.large[2] + kw * g.dilation[2]);
  }
  // A window: its taps inside the map, where tap 0 lies, and the image.
  struct Taps {
    Range taps[3];
    int64_t first[3];
    const T* image;
  };
  int64_t first(int axis, int64_t o) const { return o * g.stride[axis] - g.padding[axis]; }

  // n marks to where they belong; windows of a row are `step` apart, channels of a window 0.
  void store_marks(const M* marks, int64_t at, int64_t n, int64_t base, int64_t step) const {
    if (a.kind == Marks::indices) {
      int64_t* out = static_cast<int64_t*>(a.marks) + at;
      for (int64_t i = 0; i < n; ++i) out[i] = base + i * step + marks[i];
    } else {
      uint8_t* out = static_cast<uint8_t*>(a.marks) + at;
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<uint8_t>(marks[i]);
    }
  }

  template <bool kMarked>
  void row(const Walk& at, int64_t out, void* scratch) const {
    const int64_t width = g.large[2], n = g.small[2], pitch = phase_pitch(g), s = g.stride[2];
    C* best = static_cast<C*>(scratch);
    M* marks = reinterpret_cast<M*>(best + n);
    C* phases = reinterpret_cast<C*>(static_cast<char*>(scratch) + 16 * n);
    const Range d = taps_inside(g, 0, at.at[0]), h = taps_inside(g, 1, at.at[1]);
    const int64_t d0 = first(0, at.at[0]), h0 = first(1, at.at[1]);
    fill(best, -std::numeric_limits<C>::infinity(), n);
    if constexpr (kMarked) {
      // A window of nothing but -inf is marked with its first tap inside the map.
      fill(marks, mark(d.begin, h.begin, 0), n);
      for (int64_t o = 0; o < n && first(2, o) < 0; ++o) marks[o] = mark(d.begin, h.begin, taps_inside(g, 2, o).begin);
    }
    // Taps that lie inside the map for some window of the row: its first window has the last, its last the first.
    const Range w{taps_inside(g, 2, n - 1).begin, taps_inside(g, 2, 0).end};
    const T* plane = input + at.outer * g.large_plane();
    for (int64_t kd = d.begin; kd < d.end; ++kd)
      for (int64_t kh = h.begin; kh < h.end; ++kh) {
        const T* line = plane + ((d0 + kd * g.dilation[0]) * g.large[1] + h0 + kh * g.dilation[1]) * width;
        const C* split = phases;
        if constexpr (std::is_same_v<T, C>)
          if (s == 1) split = line;
        if (split == phases) split_phases(line, phases, width, s, pitch);
        for (int64_t kw = w.begin; kw < w.end; ++kw) {
          const RowTap t = row_tap(g, kw);
          take<C, M, kMarked>(split + t.phase * pitch + t.begin + t.shift, best + t.begin, marks + t.begin,
                              mark(kd, kh, kw), t.end - t.begin);
        }
      }
    store_row(best, values + out, n);
    if constexpr (kMarked) store_marks(marks, out, n, (d0 * g.large[1] + h0) * width - g.padding[2], g.stride[2]);
  }

  // 2 x 2 windows side by side, the commonest case by far: each row is read once, and nothing waits in scratch.
  template <bool kMarked>
  void row_2x2(const Walk& at, int64_t out) const {
    const int64_t width = g.large[2], n = g.small[2];
    const int64_t base = (at.at[0] * g.large[1] + 2 * at.at[1]) * width;
    const T* upper = input + at.outer * g.large_plane() + base;
    const M m1 = mark(0, 0, 1), m2 = mark(0, 1, 0), m3 = mark(0, 1, 1);
    alignas(64) C top[2 * kBlock], bottom[2 * kBlock], best[kBlock];
    alignas(64) M marks[kBlock];
    for (int64_t o = 0; o < n; o += kBlock) {
      const int64_t count = least(kBlock, n - o);
      const C *p = top, *q = bottom;
      if constexpr (std::is_same_v<T, C>) {
        p = upper + 2 * o;
        q = p + width;
      } else {
        load_row(upper + 2 * o, top, 2 * count);
        load_row(upper + width + 2 * o, bottom, 2 * count);
      }
      for (int64_t i = 0; i < count; ++i) {
        const C v1 = p[2 * i + 1], v2 = q[2 * i], v3 = q[2 * i + 1];
        C b = p[2 * i];
        const bool t1 = (v1 > b) | (v1 != v1);
        b = t1 ? v1 : b;
        const bool t2 = (v2 > b) | (v2 != v2);
        b = t2 ? v2 : b;
        const bool t3 = (v3 > b) | (v3 != v3);
        best[i] = t3 ? v3 : b;
        if constexpr (kMarked) marks[i] = t3 ? m3 : t2 ? m2 : t1 ? m1 : M(0);
      }
      store_row(best, values + out + o, count);
      if constexpr (kMarked) store_marks(marks, out + o, count, base + 2 * o, 2);
    }
  }

  static void read(const T* p, C& v) { v = load(*p); }
  static void read(const T* p, lanes_t<C>& v) { load_lanes(p, v); }
  static void write(T* p, const C& v) { store(p, v); }
  static void write(T* p, const lanes_t<C>& v) { store_lanes(p, v); }

  // One window, the channels of N vectors from c on (or of one, where Values is a number): all taps pass by what is
  // kept in registers.
  template <bool kMarked, class Values, class Numbers, int N>
  void channels_of(const Taps& w, int64_t c, int64_t out) const {
    constexpr int64_t kEach = sizeof(Values) / sizeof(C);
    Values best[N];
    Numbers marks[N];
    for (int i = 0; i < N; ++i) {
      best[i] = Values{} - std::numeric_limits<C>::infinity();
      marks[i] = Numbers{} + mark(w.taps[0].begin, w.taps[1].begin, w.taps[2].begin);
    }
    for (int64_t kd = w.taps[0].begin; kd < w.taps[0].end; ++kd)
      for (int64_t kh = w.taps[1].begin; kh < w.taps[1].end; ++kh)
        for (int64_t kw = w.taps[2].begin; kw < w.taps[2].end; ++kw) {
          const int64_t at =
              ((w.first[0] + kd * g.dilation[0]) * g.large[1] + w.first[1] + kh * g.dilation[1]) * g.large[2] +
              w.first[2] + kw * g.dilation[2];
          const T* p = w.image + at * g.channels + c;
          const Numbers here = Numbers{} + mark(kd, kh, kw);
          for (int i = 0; i < N; ++i) {
            Values v;
            read(p + i * kEach, v);
            const auto better = (v > best[i]) | (v != v);
            best[i] = better ? v : best[i];
            if constexpr (kMarked) marks[i] = better ? here : marks[i];
          }
        }
    for (int i = 0; i < N; ++i) write(values + out + c + i * kEach, best[i]);
    if constexpr (kMarked) {
      M marks_out[N * kEach];
      std::memcpy(marks_out, marks, sizeof marks_out);
      const int64_t base = (w.first[0] * g.large[1] + w.first[1]) * g.large[2] + w.first[2];
      store_marks(marks_out, out + c, N * kEach, base, 0);
    }
  }

  template <bool kMarked>
  void pixel(const Walk& at, int64_t out) const {
    Taps w;
    for (int i = 0; i < 3; ++i) {
      w.taps[i] = taps_inside(g, i, at.at[i]);
      w.first[i] = first(i, at.at[i]);
    }
    w.image = input + at.outer * g.large_plane() * g.channels;
    int64_t c = 0;
    // Marks are as wide as values, but in huge maps, where a flat position needs 64 bits.
    if constexpr (sizeof(C) == sizeof(M)) {
      constexpr int64_t n = kLanes<C>;
      for (; c + 4 * n <= g.channels; c += 4 * n) channels_of<kMarked, lanes_t<C>, lanes_t<M>, 4>(w, c, out);
      for (; c + n <= g.channels; c += n) channels_of<kMarked, lanes_t<C>, lanes_t<M>, 1>(w, c, out);
      // The last vector may say again what the one before it said.
      if (c < g.channels && g.channels > n) {
        channels_of<kMarked, lanes_t<C>, lanes_t<M>, 1>(w, g.channels - n, out);
        return;
      }
    }
    for (; c < g.channels; ++c) channels_of<kMarked, C, M, 1>(w, c, out);
  }

  template <bool kMarked>
  void run(int64_t begin, int64_t end, void* scratch) const {
    if (a.channels_last) {
      Walk at(begin, g.small[0], g.small[1], g.small[2]);
      for (int64_t i = begin; i < end; ++i, at.next()) pixel<kMarked>(at, i * g.channels);
      return;
    }
    const bool two_by_two = g.kernel[0] == 1 && g.kernel[1] == 2 && g.kernel[2] == 2 && g.stride[0] == 1 &&
                            g.stride[1] == 2 && g.stride[2] == 2 && g.padding[0] + g.padding[1] + g.padding[2] == 0 &&
                            g.dilation[1] == 1 && g.dilation[2] == 1 && 2 * g.small[1] <= g.large[1] &&
                            2 * g.small[2] <= g.large[2];
    Walk at(begin, g.small[0], g.small[1], 1);
    for (int64_t i = begin; i < end; ++i, at.next()) {
      if (two_by_two)
        row_2x2<kMarked>(at, i * g.small[2]);
      else
        row<kMarked>(at, i * g.small[2], scratch);
    }
  }
};

void max_pool(const MaxPoolArgs& a, int64_t begin, int64_t end, void* scratch) {
  // Positions count from a window's first tap, which may lie in the padding.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  int64_t reach = 1;
  for (int i = 0; i < 3; ++i) reach = least(reach * least(a.g.large[i] + a.g.padding[i], kMost), kMost + 1);
  const bool narrow = a.kind != Marks::indices || reach <= kMost;
  dispatch_floating(a.dtype, "max_pool", [&]<class T>() {
    using Narrow = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;
    if (a.kind == Marks::none) return Pool<T, Narrow>(a).template run<false>(begin, end, scratch);
    if (narrow) return Pool<T, Narrow>(a).template run<true>(begin, end, scratch);
    Pool<T, int64_t>(a).template run<true>(begin, end, scratch);
  });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
