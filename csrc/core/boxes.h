// Tiles that are boxes of positions and images, as TMA copies them: the division of axes, and the choice of the fastest
// box.
// The cost of a box is its number of live taps, whether or not all its rows exist. A tap is live if some position of
// the box reads inside the tensor; its reads outside give zero. The axes are divided independently: a tile is a product
// of one piece of each axis and some images, so sums over axes multiply.
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

// Pieces with this number of taps.
struct Pieces {
  int64_t taps, count;
};

// Pieces of at most `size` positions with the least sum of taps. A run is consecutive pieces with the same taps, all
// `size` long except the last.
struct AxisCut {
  std::vector<AxisSegment> runs;
  std::vector<Pieces> pieces;  // by falling taps
};
AxisCut cut_axis(const AxisPhase& phase, int64_t size);

// Taps that never read inside are left out of lists and segments.
AxisPhase without_dead_taps(AxisPhase phase);

// A tile of the kernel: rows (positions of a box), columns (channels), and its share of the tensor cores' peak.
struct TileShape {
  int64_t rows, columns;
  double rate;
};
// Those that csrc/cuda/conv_wgmma.cu has.
const std::vector<TileShape>& tile_shapes();

// What the two blocks of a pair share: neighbouring columns of a box, the map; two boxes with the same taps, the
// weights.
enum class Pairs : int32_t { none, map, weights };
// That of the fewest bytes which the problems of a launch allow: all columns, or the boxes of each region, come in
// twos.
Pairs pairs_of(const std::vector<Problem>& problems, const Box& box, const TileShape& shape);

// The inputs of the choice of boxes. Several problems of one launch have the same map and channels.
struct BoxRequest {
  std::vector<Problem> problems;
  int64_t itemsize = 2, multiprocessors = 132;
  double rate = 500e12;        // FLOP/s of all multiprocessors
  int64_t most_columns = 256;  // of a tile
};

struct BoxPlan {
  Box box;
  int64_t shape = 0, splits = 1;  // of tile_shapes(); parts of a sum
  Pairs pairs = Pairs::none;
  int64_t tiles = 0;  // parts and blocks of channels included
  double steps = 0;   // of all tiles: 128 bytes of channels at one tap
  double step = 0;    // seconds of one
  double beside = 0;  // what a tile takes beside its own, in steps
  double finish = 0;  // steps of the busiest multiprocessor, those beside included
  double seconds = 0;
  double dense_seconds = 0;  // of the same tile in rows of any shape, were no tap dead
};
BoxPlan plan_boxes(const BoxRequest& request);

// Why a problem cannot or should not run in boxes, or null.
const char* boxes_cannot(const Problem& problem, int64_t itemsize);

}  // namespace atrousops::core
