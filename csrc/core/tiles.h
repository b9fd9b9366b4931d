// What live regions save on a GPU: a model of GEMM tiles that skip a tap when none of their rows needs it.
//
// A tile is `rows` positions by `columns` output channels and costs one unit per tap it computes, however many of its
// rows are used. Tiles go to multiprocessors longest first; equal tensor-core efficiency is assumed throughout.
#pragma once

#include <string>
#include <vector>

#include "core/phases.h"
#include "core/problem.h"

namespace atrousops::core {

struct TileModel {
  int64_t rows = 128, columns = 256, multiprocessors = 132;
};

struct Tiling {
  std::string name;
  Vec3 box = {0, 0, 0};  // positions of one tile along each axis; 0 where tiles have no one shape
  int64_t batch = 0;     // images of one tile
  int64_t tiles = 0;
  double work = 0;    // tap-tiles computed
  double finish = 0;  // of the busiest multiprocessor
};

// dense: flattened positions, every tap. flat: the same, leaving out kernel rows that are dead for the whole tile.
// rect: one box over positions and images for the whole map. regions: the best box for each live region.
std::vector<Tiling> tilings(const Problem& problem, const TileModel& model);

}  // namespace atrousops::core
