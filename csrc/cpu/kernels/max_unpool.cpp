// From windows to positions and back: unpooling, and both gradients of pooling and unpooling.
#include "cpu/max_unpool.h"

#include <cstring>
#include <type_traits>

#include "cpu/kernels/matcher.h"
#include "cpu/pool_window.h"
#include "cpu/vec.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

// M is uint8_t (number of the tap in its window) or int64_t (flat position in the large map).
template <class T, class M>
struct Unpool {
  using C = compute_t<T>;
  using Match = Matcher<T, M>;
  using Bits = typename Match::Bits;
  using Mask = typename Match::Mask;
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
  static void clear(T* out, int64_t n) {
    if (n > 0) std::memset(static_cast<void*>(out), 0, n * sizeof(T));
  }

  // out = value where the mark is the wanted one; elsewhere 0, or with kKeep what was there. Counts them in `hits`.
  template <bool kKeep>
  static void choose(const M* m, const T* v, T* out, int64_t n, int64_t tap_number, int64_t at, Mask& hits) {
    const int64_t wanted = kIndices ? at : tap_number;
    Match match(wanted, 0);
    int64_t i = 0;
    for (; i + Match::kLanes <= n; i += Match::kLanes) {
      Bits here, value, before{};
      match.next(m + i, here, hits);
      std::memcpy(&value, v + i, sizeof value);
      if constexpr (kKeep) std::memcpy(&before, out + i, sizeof before);
      value = (value & here) | (before & ~here);
      std::memcpy(static_cast<void*>(out + i), &value, sizeof value);
    }
    for (; i < n; ++i) {
      const bool here = m[i] == static_cast<M>(wanted);
      out[i] = here ? v[i] : kKeep ? out[i] : T(0);
      hits[0] += here;
    }
  }

  static int64_t total(const Mask& hits) {
    int64_t sum = 0;
    for (int i = 0; i < Match::kLanes; ++i) sum += hits[i];
    return sum;
  }

  // The window along an axis that holds x, and which of its taps; disjoint windows have at most one. tap is -1 if none.
  struct Hit {
    int64_t window, tap;
  };
  Hit hit(int axis, int64_t x) const {
    const int64_t from = x + g.padding[axis], window = from / g.stride[axis];
    const int64_t distance = from - window * g.stride[axis], step = g.dilation[axis];
    const int64_t tap = step == 1 ? distance : distance % step == 0 ? distance / step : g.kernel[axis];
    return {window, tap < g.kernel[axis] && window < g.small[axis] ? tap : -1};
  }

  // A vector of windows of two, side by side.
  static void place_pairs(Match& left, Match& right, const M* m, const T* v, T* out, Mask& hits) {
    Bits value, l, r;
    std::memcpy(&value, v, sizeof value);
    left.next(m, l, hits);
    right.next(m, r, hits);
    l &= value;
    r &= value;
    Bits zipped[2];
    Match::interleave(l, r, zipped);
    std::memcpy(static_cast<void*>(out), zipped, sizeof zipped);
  }

  // A row between windows of two.
  void place_row(const Walk& at, const Hit& d, const Hit& h, T* out, Mask& hits) const {
    const int64_t n = g.small[2];
    if (d.tap < 0 || h.tap < 0) return clear(out, g.large[2]);
    const int64_t row = ((at.outer * g.small[0] + d.window) * g.small[1] + h.window) * n;
    const int64_t first = kIndices ? position(at.at[0], at.at[1], 0) : tap(d.tap, h.tap, 0);
    constexpr int64_t step = kIndices ? 2 : 0;
    const M* m = marks + row;
    const T* v = source + row;
    constexpr int64_t kLanes = Match::kLanes;
    Match left(first, 2), right(first + 1, 2);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) place_pairs(left, right, m + i, v + i, out + 2 * i, hits);
    if (i < n && n > kLanes) {
      // The last vector says some of it again, which does not count.
      Mask lane, twice{};
      for (int64_t k = 0; k < kLanes; ++k) lane[k] = k;
      lane -= static_cast<typename LaneOf<Match::kWide>::type>(i + kLanes - n);
      i = n - kLanes;
      left = Match(first + step * i, 2);
      right = Match(first + step * i + 1, 2);
      place_pairs(left, right, m + i, v + i, out + 2 * i, twice);
      hits += twice & (lane >= 0);
      i = n;
    }
    for (; i < n; ++i)
      for (int64_t k = 0; k < 2; ++k) {
        const bool here = m[i] == static_cast<M>(first + step * i + k);
        out[2 * i + k] = here ? v[i] : T(0);
        hits[0] += here;
      }
    clear(out + 2 * n, g.large[2] - 2 * n);
  }

  void place_pixel(const Walk& at, const Hit& d, const Hit& h, T* out, Mask& hits) const {
    const Hit w = hit(2, at.at[2]);
    if (d.tap < 0 || h.tap < 0 || w.tap < 0) return clear(out, g.channels);
    const int64_t window =
        (((at.outer * g.small[0] + d.window) * g.small[1] + h.window) * g.small[2] + w.window) * g.channels;
    choose<false>(marks + window, source + window, out, g.channels, tap(d.tap, h.tap, w.tap),
                  position(at.at[0], at.at[1], at.at[2]), hits);
  }

  // A window around a position: its first channel, and the mark that names the position.
  struct Source {
    int64_t from, wanted;
  };

  // The windows around a position, in the order of the small map.
  int64_t list_sources(const Walk& at, const Range& d, const Range& h, Source* list) const {
    const Range w = windows_around(g, 2, at.at[2]);
    const int64_t here = position(at.at[0], at.at[1], at.at[2]);
    int64_t count = 0;
    for (int64_t od = d.begin; od < d.end; ++od)
      for (int64_t oh = h.begin; oh < h.end; ++oh) {
        const int64_t kd = tap_of(g, 0, at.at[0], od), kh = tap_of(g, 1, at.at[1], oh);
        const int64_t row = ((at.outer * g.small[0] + od) * g.small[1] + oh) * g.small[2];
        for (int64_t ow = w.begin; ow < w.end; ++ow) {
          const int64_t kw = tap_of(g, 2, at.at[2], ow);
          if (kd >= 0 && kh >= 0 && kw >= 0)
            list[count++] = {(row + ow) * g.channels, kIndices ? here : tap(kd, kh, kw)};
        }
      }
    return count;
  }

  // What all windows around a position send there.
  void sum_pixel(const Source* list, int64_t count, T* out, Mask& hits) const {
    using Sum __attribute__((vector_size(Match::kLanes * sizeof(C)))) = C;
    int64_t c = 0;
    for (; c + Match::kLanes <= g.channels; c += Match::kLanes) {
      Sum sum{}, more;
      for (int64_t j = 0; j < count; ++j) {
        Match match(list[j].wanted, 0);
        Bits here, value;
        match.next(marks + list[j].from + c, here, hits);
        std::memcpy(&value, source + list[j].from + c, sizeof value);
        value &= here;
        if constexpr (std::is_same_v<T, C>) {
          std::memcpy(&more, &value, sizeof more);
        } else {
          T kept[Match::kLanes];
          C wide[Match::kLanes];
          std::memcpy(static_cast<void*>(kept), &value, sizeof value);
          load_row(kept, wide, Match::kLanes);
          std::memcpy(&more, wide, sizeof more);
        }
        sum += more;
      }
      C sums[Match::kLanes];
      std::memcpy(sums, &sum, sizeof sum);
      for (int i = 0; i < Match::kLanes; ++i) store(out + c + i, sums[i]);
    }
    for (; c < g.channels; ++c) {
      C sum = 0;
      for (int64_t j = 0; j < count; ++j) {
        const bool here = marks[list[j].from + c] == static_cast<M>(list[j].wanted);
        sum += here ? load(source[list[j].from + c]) : C(0);
        hits[0] += here;
      }
      store(out + c, sum);
    }
  }

  int64_t place(int64_t begin, int64_t end) const {
    const bool meet = !g.disjoint();
    Mask hits{};
    Walk at(begin, g.large[0], g.large[1], a.channels_last ? g.large[2] : 1);
    const int64_t run = a.channels_last ? g.channels : g.large[2];
    Hit d{}, h{};
    Range rd{}, rh{};
    Source list[kMostMeeting];
    int64_t found = 0;
    for (int64_t i = begin; i < end; ++i, at.next()) {
      // Divisions, for a row and not for each of its elements.
      if (meet && (i == begin || at.at[2] == 0)) {
        rd = windows_around(g, 0, at.at[0]);
        rh = windows_around(g, 1, at.at[1]);
      } else if (i == begin || at.at[2] == 0) {
        d = hit(0, at.at[0]);
        h = hit(1, at.at[1]);
      }
      if (meet)
        sum_pixel(list, list_sources(at, rd, rh, list), output + i * run, hits);
      else if (a.channels_last)
        place_pixel(at, d, h, output + i * run, hits);
      else
        place_row(at, d, h, output + i * run, hits);
      // Before a lane can overflow.
      if (i % 64 == 0) {
        found += total(hits);
        hits = Mask{};
      }
    }
    return found + total(hits);
  }

  // Windows along an axis with all their taps inside the map.
  Range whole_windows(int axis) const {
    const int64_t room = g.large[axis] - 1 - (g.kernel[axis] - 1) * g.dilation[axis] + g.padding[axis];
    return {ceil_div(g.padding[axis], g.stride[axis]), room < 0 ? 0 : room / g.stride[axis] + 1};
  }
  static bool in(const Range& r, int64_t i) { return i >= r.begin && i < r.end; }

  // Windows with all their taps inside the map, and where a code points there, from the first tap on.
  struct Inner {
    Range d, h, w;
    int64_t offset[256];
  };
  Inner inner() const {
    Inner all{whole_windows(0), whole_windows(1), whole_windows(2), {}};
    if constexpr (!kIndices)
      for (int64_t k = 0; k < g.taps() && k < 256; ++k)
        all.offset[k] = position(k / (g.kernel[1] * g.kernel[2]) * g.dilation[0],
                                 k / g.kernel[2] % g.kernel[1] * g.dilation[1], k % g.kernel[2] * g.dilation[2]);
    return all;
  }

  // S is where values meet: T itself, or float for sums of 16-bit numbers.
  template <class S, bool kSum>
  int64_t scatter_group(const Inner& all, int64_t batch, int64_t c, int64_t count, S* sums, int64_t pitch) const {
    const int64_t step = a.channels_last ? g.channels : 1, windows = g.small_plane(), plane = g.large_plane();
    int64_t inside = 0, from = a.channels_last ? batch * windows * g.channels + c : (batch * g.channels + c) * windows;
    // Zero bits are 0 in every dtype. GCC would call memset for each element of a plane.
    const int64_t runs = pitch == count ? 1 : plane, run = pitch == count ? plane * count : count;
    for (int64_t p = 0; p < runs; ++p) std::memset(static_cast<void*>(sums + p * pitch), 0, run * sizeof(S));
    const auto add = [](S& sum, T value) {
      if constexpr (kSum)
        sum += load(value);
      else
        sum = value;
    };
    if (windows == 0) return 0;
    Walk at(0, g.small[0], g.small[1], 1);
    for (; at.outer == 0; at.next(), from += step * g.small[2]) {
      const int64_t first = position(start(0, at), start(1, at), -g.padding[2]);
      const bool whole_row = !kIndices && in(all.d, at.at[0]) && in(all.h, at.at[1]);
      const Range w = whole_row ? all.w : Range{0, 0};
      const int64_t sure = least(w.end, g.small[2]);
      Walk window = at;
      for (int64_t o = 0; o < g.small[2]; ++o) {
        if (o == w.begin && o < sure) {
          const M* m = marks + from;
          S* row = sums + first * pitch;
          if (count == 1 && step == 1)
            for (; o < sure; ++o) add(row[o * g.stride[2] + all.offset[static_cast<uint8_t>(m[o])]], source[from + o]);
          else
            for (; o < sure; ++o)
              for (int64_t i = 0; i < count; ++i) {
                const int64_t p = o * g.stride[2] + all.offset[static_cast<uint8_t>(m[o * step + i])];
                add(row[p * pitch + i], source[from + o * step + i]);
              }
          inside += (sure - w.begin) * count;
          if (o == g.small[2]) break;
        }
        window.at[2] = o;
        for (int64_t i = 0; i < count; ++i) {
          const int64_t p = find(window, marks[from + o * step + i]);
          inside += p >= 0;
          if (p >= 0) add(sums[p * pitch + i], source[from + o * step + i]);
        }
      }
    }
    return inside;
  }

  int64_t scatter(int64_t begin, int64_t end, void* scratch) const {
    const int64_t width = a.channels_last ? kScatterChannels : 1, groups = ceil_div(g.channels, width);
    const int64_t plane = g.large_plane(), pitch = a.channels_last ? g.channels : 1;
    const Inner all = inner();
    int64_t inside = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / groups, c = i % groups * width, count = least(width, g.channels - c);
      T* out = output + (a.channels_last ? batch * plane * g.channels + c : i * plane);
      if (a.meeting == Meeting::last) {
        inside += scatter_group<T, false>(all, batch, c, count, out, pitch);
      } else if constexpr (std::is_same_v<T, C>) {
        inside += scatter_group<T, true>(all, batch, c, count, out, pitch);
      } else {
        C* sums = static_cast<C*>(scratch);
        inside += scatter_group<C, true>(all, batch, c, count, sums, width);
        for (int64_t p = 0; p < plane; ++p) store_row(sums + p * width, out + p * pitch, count);
      }
    }
    return inside;
  }

  int64_t start(int axis, const Walk& at) const { return at.at[axis] * g.stride[axis] - g.padding[axis]; }

  // Where window `at` finds its mark in the large map, -1 if outside.
  int64_t find(const Walk& at, M mark) const {
    if constexpr (kIndices) {
      return mark >= 0 && mark < g.large_plane() ? mark : -1;
    } else {
      const int64_t k[3] = {mark / (g.kernel[1] * g.kernel[2]), mark / g.kernel[2] % g.kernel[1], mark % g.kernel[2]};
      int64_t x[3];
      for (int i = 0; i < 3; ++i) {
        x[i] = start(i, at) + k[i] * g.dilation[i];
        if (x[i] < 0 || x[i] >= g.large[i]) return -1;
      }
      return position(x[0], x[1], x[2]);
    }
  }

  void pick_row(Walk at, int64_t row) const {
    const T* plane = source + at.outer * g.large_plane();
    for (at.at[2] = 0; at.at[2] < g.small[2]; ++at.at[2]) {
      const int64_t p = find(at, marks[row + at.at[2]]);
      output[row + at.at[2]] = p < 0 ? T(0) : plane[p];
    }
  }

  // The taps of a window are few, and channels are many: each tap offers its element to all of them.
  void pick_pixel(const Walk& at, int64_t window) const {
    const int64_t channels = g.channels;
    const T* image = source + at.outer * g.large_plane() * channels;
    const M* m = marks + window;
    T* out = output + window;
    const Range d = taps_inside(g, 0, at.at[0]), h = taps_inside(g, 1, at.at[1]), w = taps_inside(g, 2, at.at[2]);
    Mask hits{};
    clear(out, channels);
    for (int64_t kd = d.begin; kd < d.end; ++kd)
      for (int64_t kh = h.begin; kh < h.end; ++kh)
        for (int64_t kw = w.begin; kw < w.end; ++kw) {
          const int64_t p = position(start(0, at) + kd * g.dilation[0], start(1, at) + kh * g.dilation[1],
                                     start(2, at) + kw * g.dilation[2]);
          choose<true>(m, image + p * channels, out, channels, tap(kd, kh, kw), p, hits);
        }
    if (!kIndices || total(hits) == channels) return;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t p = find(at, m[c]);
      out[c] = p < 0 ? T(0) : image[p * channels + c];
    }
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

void place_windows(const MaxUnpoolArgs& a, int64_t begin, int64_t end, int64_t* matched) {
  with_types(a, [&](const auto& unpool) { *matched += unpool.place(begin, end); });
}

void scatter(const MaxUnpoolArgs& a, int64_t begin, int64_t end, void* scratch, int64_t* matched) {
  with_types(a, [&](const auto& unpool) { *matched += unpool.scatter(begin, end, scratch); });
}

void pick(const MaxUnpoolArgs& a, int64_t begin, int64_t end) {
  with_types(a, [&](const auto& unpool) { unpool.pick(begin, end); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
