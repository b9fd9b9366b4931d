#include "core/tiles.h"

#include <algorithm>
#include <functional>
#include <queue>

#include "core/checked.h"

namespace atrousops::core {
namespace {

using Costs = std::vector<int64_t>;  // of each tile of one column block

int64_t width(const Problem& p) { return p.kind == Kind::input_grad ? p.c : p.k; }

double finish_time(Costs costs, int64_t copies, int64_t multiprocessors) {
  std::sort(costs.begin(), costs.end(), std::greater<>());
  std::priority_queue<int64_t, Costs, std::greater<>> free(std::greater<>(), Costs(multiprocessors, 0));
  int64_t last = 0;
  for (const int64_t cost : costs)
    for (int64_t i = 0; i < copies; ++i) {
      const int64_t end = free.top() + cost;
      free.pop();
      free.push(end);
      last = std::max(last, end);
    }
  return static_cast<double>(last);
}

Tiling tiling(const std::string& name, const Costs& costs, const Problem& p, const TileModel& m) {
  const int64_t copies = ceil_div(width(p), m.columns);
  Tiling t{name};
  t.tiles = static_cast<int64_t>(costs.size()) * copies;
  for (const int64_t c : costs) t.work += static_cast<double>(c * copies);
  t.finish = finish_time(costs, copies, m.multiprocessors);
  return t;
}

int64_t count_live(const AxisPhase& a, int64_t begin, int64_t end) {
  return std::count_if(a.taps.begin(), a.taps.end(),
                       [&](const AxisTap& t) { return t.begin < end && begin < t.end && t.begin < t.end; });
}

int64_t all_taps(const Phase& p) {
  return static_cast<int64_t>(p[0]->taps.size() * p[1]->taps.size() * p[2]->taps.size());
}

void add_dense(Costs& costs, const Problem& p, const Phase& phase, int64_t rows) {
  const int64_t positions = p.n * phase[0]->count * phase[1]->count * phase[2]->count;
  costs.insert(costs.end(), ceil_div(positions, rows), all_taps(phase));
}

// A kernel row (all taps along the last axis) is skipped if all its reads are above or below the tensor.
void add_flat(Costs& costs, const Problem& p, const Phase& phase, int64_t rows) {
  const auto& [z, y, x] = phase;
  const int64_t positions = p.n * z->count * y->count * x->count;
  std::vector<bool> live(z->taps.size() * y->taps.size());
  for (int64_t begin = 0; begin < positions; begin += rows) {
    std::fill(live.begin(), live.end(), false);
    const int64_t end = std::min(begin + rows, positions);
    for (int64_t line = begin / x->count; line <= (end - 1) / x->count; ++line) {
      const int64_t oy = line % y->count, oz = line / y->count % z->count;
      for (size_t i = 0; i < z->taps.size(); ++i)
        for (size_t j = 0; j < y->taps.size(); ++j) {
          const AxisTap &a = z->taps[i], &b = y->taps[j];
          if (a.begin <= oz && oz < a.end && b.begin <= oy && oy < b.end) live[i * y->taps.size() + j] = true;
        }
    }
    costs.push_back(std::count(live.begin(), live.end(), true) * static_cast<int64_t>(x->taps.size()));
  }
}

struct Box {
  int64_t h, w, batch;
};

// Calls f for every box of at most `rows` positions; the last two axes and the images share it.
template <class F>
void for_each_box(int64_t rows, int64_t h, int64_t w, int64_t n, const F& f) {
  for (int64_t bw = 1; bw <= std::min(w, rows); ++bw)
    for (int64_t bh = 1; bh <= std::min(h, rows / bw); ++bh) f(Box{bh, bw, std::min(n, rows / (bw * bh))});
}

Costs box_costs(const Phase& phase, const Box& box, int64_t n) {
  const auto along = [](const AxisPhase& a, int64_t step) {
    Costs c;
    for (int64_t o = 0; o < a.count; o += step) c.push_back(count_live(a, o, std::min(o + step, a.count)));
    return c;
  };
  Costs costs;
  const Costs rows = along(*phase[1], box.h), columns = along(*phase[2], box.w);
  for (const int64_t a : along(*phase[0], 1))
    for (const int64_t b : rows)
      for (const int64_t c : columns) costs.insert(costs.end(), ceil_div(n, box.batch), a * b * c);
  return costs;
}

int64_t sum(const Costs& costs) {
  int64_t total = 0;
  for (const int64_t c : costs) total += c;
  return total;
}

Box best_box(const Phase& phase, int64_t n, int64_t rows) {
  Box best{1, 1, 1};
  int64_t least = -1;
  for_each_box(rows, phase[1]->count, phase[2]->count, n, [&](const Box& box) {
    const int64_t work = sum(box_costs(phase, box, n));
    if (least < 0 || work < least) {
      least = work;
      best = box;
    }
  });
  return best;
}

void add_region(Costs& costs, const Region& r, int64_t n, int64_t rows) {
  const int64_t d = r.end[0] - r.begin[0], h = r.end[1] - r.begin[1], w = r.end[2] - r.begin[2];
  int64_t least = -1;
  for_each_box(rows, h, w, n, [&](const Box& box) {
    const int64_t tiles = d * ceil_div(h, box.h) * ceil_div(w, box.w) * ceil_div(n, box.batch);
    if (least < 0 || tiles < least) least = tiles;
  });
  costs.insert(costs.end(), std::max<int64_t>(least, 0), r.taps());
}

}  // namespace

std::vector<Tiling> tilings(const Problem& problem, const TileModel& model) {
  const Phases all = phases(problem);
  Costs dense, flat, rect, region;
  Box box{0, 0, 0};
  for (int64_t i = 0; i < (problem.n > 0 ? all.size() : 0); ++i) {
    const Phase phase = all[i];
    add_dense(dense, problem, phase, model.rows);
    add_flat(flat, problem, phase, model.rows);
    box = best_box(phase, problem.n, model.rows);
    const Costs of_phase = box_costs(phase, box, problem.n);
    rect.insert(rect.end(), of_phase.begin(), of_phase.end());
  }
  if (problem.n > 0)
    for (const Region& r : regions(all)) add_region(region, r, problem.n, model.rows);
  std::vector<Tiling> result = {tiling("dense", dense, problem, model), tiling("flat", flat, problem, model),
                                tiling("rect", rect, problem, model), tiling("regions", region, problem, model)};
  if (all.size() == 1) {
    result[2].box = {1, box.h, box.w};
    result[2].batch = box.batch;
  }
  return result;
}

}  // namespace atrousops::core
