// Savings by live regions on a GPU: a model of GEMM tiles that skip a tap if none of their rows needs it.
// A tile is `rows` positions by `columns` output channels. It costs one unit per computed tap, even if not all rows are
// used. Tiles are assigned to multiprocessors longest first, with the same tensor-core efficiency for all.
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
  Vec3 box = {0, 0, 0};  // positions of one tile along each axis; 0 if tiles differ in shape
  int64_t batch = 0;     // images of one tile
  int64_t tiles = 0;
  double work = 0;    // tap-tiles computed
  double finish = 0;  // of the busiest multiprocessor
};

// dense: flattened positions, every tap. flat: the same, without kernel rows that are dead for the whole tile.
// rect: one box over positions and images for the whole map. regions: the best box for each live region.
std::vector<Tiling> tilings(const Problem& problem, const TileModel& model);

}  // namespace atrousops::core
