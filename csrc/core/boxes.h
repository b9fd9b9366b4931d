// Tiles that are boxes of positions and images, as TMA copies them: where an axis is cut, and which box takes the least
// time.
//
// A box costs its live taps, however many of its rows exist: those of which some position inside reads inside. What the
// others of its taps' reads bring from outside the tensor is zero. The axes are cut independently: a tile is a product
// of one piece of each axis and some images, and the sums over an axis multiply.
#pragma once

#include <string>
#include <vector>

#include "core/checked.h"
#include "core/phases.h"

namespace atrousops::core {

struct Box {
  Vec3 size = {1, 1, 1};
  int64_t images = 1;

  int64_t positions() const { return size[0] * size[1] * size[2]; }
  bool operator==(const Box&) const = default;
};

// Pieces with so many taps.
struct Pieces {
  int64_t taps, count;
};

// Pieces of at most `size` positions with the least sum of taps. A run is pieces of the same taps that follow each
// other, all of them `size` long but the last.
struct AxisCut {
  std::vector<AxisSegment> runs;
  std::vector<Pieces> pieces;  // by falling taps
};
AxisCut cut_axis(const AxisPhase& phase, int64_t size);

// Taps that read nothing anywhere are left out of lists and segments.
AxisPhase without_dead_taps(AxisPhase phase);

// A tile of the kernel: rows of a box, columns of channels, and the share of the tensor cores' speed it reaches.
struct TileShape {
  int64_t rows, columns;
  double rate;
};
// Those that csrc/cuda/conv_wgmma.cu has.
const std::vector<TileShape>& tile_shapes();

// Whether tiles of so many columns come in pairs, whose blocks share what they read of the map: neighbours in a box.
inline bool in_pairs(const Problem& p, int64_t columns) {
  return ceil_div(p.kind == Kind::input_grad ? p.c : p.k, columns) % 2 == 0;
}

// What boxes are chosen by. Several problems of one launch have the same map and channels.
struct BoxRequest {
  std::vector<Problem> problems;
  int64_t itemsize = 2, multiprocessors = 132;
  double rate = 500e12;  // FLOP/s of all multiprocessors
};

struct BoxPlan {
  Box box;
  int64_t shape = 0, splits = 1;  // of tile_shapes(); parts of a sum
  int64_t tiles = 0;              // parts and blocks of channels included
  double steps = 0;               // of all tiles: 128 bytes of channels at one tap
  double step = 0;                // seconds of one
  double beside = 0;              // what a tile takes beside its own, in steps
  double finish = 0;              // steps of the busiest multiprocessor, those beside included
  double seconds = 0;
  double dense_seconds = 0;  // of the same tile in rows of any shape, were no tap dead
};
BoxPlan plan_boxes(const BoxRequest& request);

// Why boxes are no way to run a problem, or null: what the kernel cannot do, and what others do faster.
const char* boxes_cannot(const Problem& problem, int64_t itemsize);

}  // namespace atrousops::core
