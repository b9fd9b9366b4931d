// Packs bands of a tensor in the order of the direct convolution's reads; include only from csrc/cpu/kernels.
#pragma once

#include "cpu/conv.h"
#include "cpu/lanes.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

// The groups of one item: `vectors` vectors, the last one shifted back if groups are not a multiple of a vector.
template <class C>
struct ConvGroups {
  int64_t first, count, vectors;

  ConvGroups(const ConvDirectShape& s, int64_t block) : first(block), count(1), vectors(1) {
    if (!s.channels_last) return;
    // The last block is completed to a whole vector with groups of the previous block.
    const int64_t rest = s.groups - (s.blocks - 1) * kConvDirectBlock;
    const int64_t moved = s.blocks > 1 && rest < kConvDirectLanes ? kConvDirectLanes : 0;
    const int64_t last = s.groups - rest - moved;
    first = block == s.blocks - 1 ? last : block * kConvDirectBlock;
    const int64_t end = block == s.blocks - 1 ? s.groups : first + kConvDirectBlock;
    count = (block < s.blocks - 1 && end > last ? last : end) - first;
    vectors = (count + kLanes<C> - 1) / kLanes<C>;
  }
  // Whether every vector is full.
  bool whole() const { return count >= kLanes<C>; }
  int64_t begin(int64_t v) const {
    return whole() && (v + 1) * kLanes<C> > count ? first + count - kLanes<C> : first + v * kLanes<C>;
  }
  int64_t lane(int64_t v) const { return begin(v) - first; }
  int64_t lanes() const { return whole() ? kLanes<C> : count; }
};

// The first lattice position of a run that is written at `at` or later.
static inline int64_t first_of(const ConvRun& r, int64_t at) {
  const int64_t j = at <= r.p0 ? 0 : (at - r.p0 + r.p - 1) / r.p;
  return j < r.begin ? r.begin : j < r.end ? j : r.end;
}

template <class T, class C>
static inline void pack_piece(const ConvPiece& p, const T* src, C* dst) {
  src += p.from;
  dst += p.begin;
  if (p.step == 1 && p.from_step == 1) {
    load_short(src, dst, p.count);
  } else if (p.step == 1 && p.from_step == 2) {
    for (int64_t i = 0; i < p.count; ++i) dst[i] = load(src[2 * i]);
  } else {
    for (int64_t i = 0; i < p.count; ++i) dst[i * p.step] = load(src[i * p.from_step]);
  }
}

template <class T, class C>
static void pack_plane_rows(const ConvPacked& p, const T* src, int64_t rows, C* dst) {
  for (int64_t row = 0; row < rows; ++row, src += p.size[2], dst += p.pitch)
    for (int64_t i = 0; i < p.pieces; ++i) pack_piece(p.piece[i], src, dst);
}

// One row of positions; i counts the channels of a group.
template <class T, class C>
static void pack_channels_row(const ConvPacked& p, const ConvGroups<C>& g, const T* src, int64_t channels, int64_t i,
                              C* dst) {
  src += g.first * p.count + i;
  for (const ConvPiece* piece = p.piece; piece != p.piece + p.pieces; ++piece) {
    const T* from = src + piece->from * channels;
    C* to = dst + piece->begin * kConvDirectBlock;
    for (int64_t x = 0; x < piece->count; ++x, from += channels, to += kConvDirectBlock) {
      if (p.count == 1) {
        load_short(from, to, g.count);
      } else {
        for (int64_t l = 0; l < g.count; ++l) to[l] = load(from[l * p.count]);
      }
      for (int64_t l = g.count; l < kLanes<C>; ++l) to[l] = 0;
    }
  }
}

// Positions [begin, end) of axis 1, for one image and the groups g. Padding elements are the same in every band and are
// initialised to zero.
template <class T, class C>
static void pack_band(const ConvDirectShape& s, const ConvPacked& p, const ConvGroups<C>& g, int64_t n, int64_t begin,
                      int64_t end, C* dst) {
  const int64_t line = s.channels_last ? p.pitch * kConvDirectBlock : p.pitch, slab = p.rows * line;
  const int64_t channels = s.groups * p.count, row = p.size[2] * (s.channels_last ? channels : 1);
  const T* data = static_cast<const T*>(p.data);
  for (int64_t i = 0; i < p.count; ++i)
    for (int64_t x0 = 0; x0 < p.size[0]; ++x0, dst += slab) {
      if (!s.channels_last) {
        const int64_t plane = (n * s.groups + g.first) * p.count + i;
        pack_plane_rows(p, data + ((plane * p.size[0] + x0) * p.size[1] + begin) * row, end - begin, dst);
        continue;
      }
      const T* src = data + ((n * p.size[0] + x0) * p.size[1] + begin) * row;
      for (int64_t x1 = begin; x1 < end; ++x1, src += row)
        pack_channels_row(p, g, src, channels, i, dst + (x1 - begin) * line);
    }
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
