// From windows to positions and back: unpooling, and both gradients of pooling and unpooling.
#include "cpu/max_unpool.h"

#include "cpu/pool_window.h"
#include "cpu/vec.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

constexpr int64_t kBlock = 128;

// M is uint8_t (number of the tap in its window) or int64_t (flat position in the large map).
template <class T, class M>
struct Unpool {
  using C = compute_t<T>;
  static constexpr bool kIndices = sizeof(M) == 8;
  const MaxUnpoolArgs& a;
  const PoolGeometry& g;
  const T* source;
  const M* marks;
  T* output;

  explicit Unpool(const MaxUnpoolArgs& args)
      : a(args),
        g(args.g),
        source(static_cast<const T*>(args.source)),
        marks(static_cast<const M*>(args.marks)),
        output(static_cast<T*>(args.output)) {}

  int64_t position(int64_t d, int64_t h, int64_t w) const { return (d * g.large[1] + h) * g.large[2] + w; }
  int64_t tap(int64_t kd, int64_t kh, int64_t kw) const { return (kd * g.kernel[1] + kh) * g.kernel[2] + kw; }

  // The mark of element i of a run, if it names this tap: the same tap for all, or positions `step` apart.
  static M wanted(int64_t tap_number, int64_t first_position, int64_t step, int64_t i) {
    return kIndices ? static_cast<M>(first_position + i * step) : static_cast<M>(tap_number);
  }

  // out (+)= value where the mark is the wanted one; returns how many were.
  template <Meeting kMeeting>
  static int64_t merge(const M* __restrict m, const C* __restrict v, C* __restrict out, int64_t n, int64_t tap_number,
                       int64_t first_position, int64_t step) {
    M found = 0;
    for (int64_t i = 0; i < n; ++i) {
      const bool here = m[i] == wanted(tap_number, first_position, step, i);
      const C before = out[i], value = v[i];
      out[i] = here ? (kMeeting == Meeting::sum ? before + value : value) : before;
      if constexpr (kIndices) found += here;
    }
    return static_cast<int64_t>(found);
  }

  // Calls f(od, oh, kd, kh) for the windows that hold row (d, h), in the order of the small map.
  template <class F>
  void rows_around(int64_t d, int64_t h, const F& f) const {
    const Range rd = windows_around(g, 0, d), rh = windows_around(g, 1, h);
    for (int64_t od = rd.begin; od < rd.end; ++od) {
      const int64_t kd = tap_of(g, 0, d, od);
      if (kd < 0) continue;
      for (int64_t oh = rh.begin; oh < rh.end; ++oh) {
        const int64_t kh = tap_of(g, 1, h, oh);
        if (kh >= 0) f(od, oh, kd, kh);
      }
    }
  }

  template <Meeting kMeeting>
  int64_t place_row(const Walk& at, T* out, void* scratch) const {
    const int64_t width = g.large[2], n = g.small[2], s = g.stride[2], pitch = phase_pitch(g);
    C* phases = static_cast<C*>(scratch);
    C* converted = phases + s * pitch;
    for (int64_t i = 0; i < s * pitch; ++i) phases[i] = 0;
    int64_t found = 0;
    rows_around(at.at[0], at.at[1], [&](int64_t od, int64_t oh, int64_t kd, int64_t kh) {
      const int64_t row = ((at.outer * g.small[0] + od) * g.small[1] + oh) * n;
      const C* v = converted;
      if constexpr (std::is_same_v<T, C>)
        v = source + row;
      else
        load_row(source + row, converted, n);
      // Last tap first: at a given position it belongs to the first of the windows.
      for (int64_t kw = g.kernel[2] - 1; kw >= 0; --kw) {
        const RowTap t = row_tap(g, kw);
        const int64_t x = (t.begin + t.shift) * s + t.phase;
        found += merge<kMeeting>(marks + row + t.begin, v + t.begin, phases + t.phase * pitch + t.begin + t.shift,
                                 t.end - t.begin, tap(kd, kh, kw), position(at.at[0], at.at[1], x), s);
      }
    });
    join_phases(phases, out, width, s, pitch);
    return found;
  }

  static void join_phases(const C* __restrict phases, T* __restrict out, int64_t width, int64_t s, int64_t pitch) {
    if (s == 1) return store_row(phases, out, width);
    if (s == 2) {
      for (int64_t i = 0; i < width / 2; ++i) {
        store(out + 2 * i, phases[i]);
        store(out + 2 * i + 1, phases[pitch + i]);
      }
      if (width % 2) store(out + width - 1, phases[width / 2]);
      return;
    }
    for (int64_t phase = 0; phase < s; ++phase)
      for (int64_t i = phase, p = phase * pitch; i < width; i += s) store(out + i, phases[p++]);
  }

  template <Meeting kMeeting>
  int64_t place_pixel(const Walk& at, T* out) const {
    const int64_t channels = g.channels, here = position(at.at[0], at.at[1], at.at[2]);
    const Range rw = windows_around(g, 2, at.at[2]);
    alignas(64) C sum[kBlock], converted[kBlock];
    int64_t found = 0;
    for (int64_t c = 0; c < channels; c += kBlock) {
      const int64_t count = least(kBlock, channels - c);
      for (int64_t i = 0; i < count; ++i) sum[i] = 0;
      rows_around(at.at[0], at.at[1], [&](int64_t od, int64_t oh, int64_t kd, int64_t kh) {
        for (int64_t ow = rw.begin; ow < rw.end; ++ow) {
          const int64_t kw = tap_of(g, 2, at.at[2], ow);
          if (kw < 0) continue;
          const int64_t window = (((at.outer * g.small[0] + od) * g.small[1] + oh) * g.small[2] + ow) * channels + c;
          load_row(source + window, converted, count);
          found += merge<kMeeting>(marks + window, converted, sum, count, tap(kd, kh, kw), here, 0);
        }
      });
      store_row(sum, out + c, count);
    }
    return found;
  }

  template <Meeting kMeeting>
  int64_t place(int64_t begin, int64_t end, void* scratch) const {
    int64_t found = 0;
    Walk at(begin, g.large[0], g.large[1], a.channels_last ? g.large[2] : 1);
    const int64_t run = a.channels_last ? g.channels : g.large[2];
    for (int64_t i = begin; i < end; ++i, at.next())
      found += a.channels_last ? place_pixel<kMeeting>(at, output + i * run)
                               : place_row<kMeeting>(at, output + i * run, scratch);
    return found;
  }

  // S is where values meet: T itself, or float for sums of 16-bit numbers.
  template <class S>
  int64_t scatter_group(int64_t batch, int64_t c, int64_t count, S* sums, int64_t pitch) const {
    const int64_t step = a.channels_last ? g.channels : 1, windows = g.small_plane(), plane = g.large_plane();
    const int64_t first = a.channels_last ? batch * windows * g.channels + c : (batch * g.channels + c) * windows;
    for (int64_t p = 0; p < plane; ++p)
      for (int64_t i = 0; i < count; ++i) sums[p * pitch + i] = S(0);
    int64_t inside = 0;
    for (int64_t o = 0; o < windows; ++o)
      for (int64_t i = 0; i < count; ++i) {
        const int64_t from = first + o * step + i;
        const int64_t p = static_cast<int64_t>(marks[from]);
        if (p < 0 || p >= plane) continue;
        ++inside;
        S& sum = sums[p * pitch + i];
        if constexpr (std::is_same_v<S, C>)
          sum = a.meeting == Meeting::sum ? sum + load(source[from]) : load(source[from]);
        else
          sum = source[from];
      }
    return inside;
  }

  int64_t scatter(int64_t begin, int64_t end, void* scratch) const {
    const int64_t width = a.channels_last ? kScatterChannels : 1, groups = ceil_div(g.channels, width);
    const int64_t plane = g.large_plane(), pitch = a.channels_last ? g.channels : 1;
    int64_t inside = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / groups, c = i % groups * width, count = least(width, g.channels - c);
      T* out = output + (a.channels_last ? batch * plane * g.channels + c : i * plane);
      if (std::is_same_v<T, C> || a.meeting == Meeting::last) {
        inside += scatter_group<T>(batch, c, count, out, pitch);
      } else if constexpr (!std::is_same_v<T, C>) {
        C* sums = static_cast<C*>(scratch);
        inside += scatter_group<C>(batch, c, count, sums, width);
        for (int64_t p = 0; p < plane; ++p) store_row(sums + p * width, out + p * pitch, count);
      }
    }
    return inside;
  }

  // Where window `at` finds its mark in the large map, -1 if outside.
  int64_t find(const Walk& at, M mark) const {
    if constexpr (kIndices) return mark >= 0 && mark < g.large_plane() ? mark : -1;
    const int64_t k = mark,
                  tap_at[3] = {k / (g.kernel[1] * g.kernel[2]), k / g.kernel[2] % g.kernel[1], k % g.kernel[2]};
    int64_t x[3];
    for (int i = 0; i < 3; ++i) {
      x[i] = at.at[i] * g.stride[i] - g.padding[i] + tap_at[i] * g.dilation[i];
      if (x[i] < 0 || x[i] >= g.large[i]) return -1;
    }
    return position(x[0], x[1], x[2]);
  }

  void pick_row(Walk at, int64_t row) const {
    const T* plane = source + at.outer * g.large_plane();
    for (int64_t o = 0; o < g.small[2]; ++o) {
      at.at[2] = o;
      const int64_t p = find(at, marks[row + o]);
      output[row + o] = p < 0 ? T(0) : plane[p];
    }
  }

  // The taps of a window are few, and channels are many: each tap offers its element to all of them.
  void pick_pixel(const Walk& at, int64_t window) const {
    const int64_t channels = g.channels;
    const T* image = source + at.outer * g.large_plane() * channels;
    const M* m = marks + window;
    T* out = output + window;
    const Range d = taps_inside(g, 0, at.at[0]), h = taps_inside(g, 1, at.at[1]), w = taps_inside(g, 2, at.at[2]);
    int64_t found = 0;
    for (int64_t c = 0; c < channels; ++c) out[c] = T(0);
    for (int64_t kd = d.begin; kd < d.end; ++kd)
      for (int64_t kh = h.begin; kh < h.end; ++kh)
        for (int64_t kw = w.begin; kw < w.end; ++kw) {
          const int64_t p = position(at.at[0] * g.stride[0] - g.padding[0] + kd * g.dilation[0],
                                     at.at[1] * g.stride[1] - g.padding[1] + kh * g.dilation[1],
                                     at.at[2] * g.stride[2] - g.padding[2] + kw * g.dilation[2]);
          found += choose(m, image + p * channels, out, channels, wanted(tap(kd, kh, kw), p, 0, 0));
        }
    if (!kIndices || found == channels) return;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t p = find(at, m[c]);
      out[c] = p < 0 ? T(0) : image[p * channels + c];
    }
  }

  static int64_t choose(const M* __restrict m, const T* __restrict v, T* __restrict out, int64_t n, M mark) {
    M found = 0;
    for (int64_t i = 0; i < n; ++i) {
      const bool here = m[i] == mark;
      const T before = out[i], value = v[i];
      out[i] = here ? value : before;
      if constexpr (kIndices) found += here;
    }
    return static_cast<int64_t>(found);
  }

  void pick(int64_t begin, int64_t end) const {
    Walk at(begin, g.small[0], g.small[1], a.channels_last ? g.small[2] : 1);
    for (int64_t i = begin; i < end; ++i, at.next()) {
      if (a.channels_last)
        pick_pixel(at, i * g.channels);
      else
        pick_row(at, i * g.small[2]);
    }
  }
};

// Calls f with the Unpool of this dtype and kind of mark.
template <class F>
static void with_types(const MaxUnpoolArgs& a, const F& f) {
  dispatch_floating(a.dtype, "max_unpool", [&]<class T>() {
    if (a.kind == Marks::codes)
      f(Unpool<T, uint8_t>(a));
    else
      f(Unpool<T, int64_t>(a));
  });
}

void place_windows(const MaxUnpoolArgs& a, int64_t begin, int64_t end, void* scratch, int64_t* matched) {
  with_types(a, [&](const auto& unpool) {
    *matched += a.meeting == Meeting::sum ? unpool.template place<Meeting::sum>(begin, end, scratch)
                                          : unpool.template place<Meeting::last>(begin, end, scratch);
  });
}

void scatter(const MaxUnpoolArgs& a, int64_t begin, int64_t end, void* scratch, int64_t* matched) {
  with_types(a, [&](const auto& unpool) { *matched += unpool.scatter(begin, end, scratch); });
}

void pick(const MaxUnpoolArgs& a, int64_t begin, int64_t end) {
  with_types(a, [&](const auto& unpool) { unpool.pick(begin, end); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
