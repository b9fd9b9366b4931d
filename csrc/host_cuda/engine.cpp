#include "host_cuda/engine.h"

#include <algorithm>
#include <deque>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string_view>

#include "host_cuda/shared_memory.h"

namespace atrousops::host_cuda {

Thread* self = nullptr;
dim3 grid_size, block_size;
uint3 block_index;

void fail(const std::string& message) { throw std::runtime_error(message); }

namespace {

// Everything about the cluster that runs now. There is one, because launches take turns.
struct Engine {
  std::mutex turn;
  uint64_t seed = 0;
  bool ahead = false;
  std::mt19937_64 random;
  Stacks stacks;
  std::vector<int> free_stacks;
  Context scheduler;
  const std::function<void()>* body = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Block> blocks;
  std::deque<Thread*> ready;
  const Warp* last = nullptr;  // that ran
  std::vector<Thread*> polling;
  std::exception_ptr error;
  Thread* culprit = nullptr;
};
Engine& engine() {
  static Engine* const e = new Engine;  // outlives every static destructor
  return *e;
}

std::string triple(dim3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}
std::string place(const Location& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

void make_ready(Thread* t) {
  t->state = Thread::State::ready;
  engine().ready.push_back(t);
}

// Gives the turn back; returns when another thread has made this one ready and it was chosen.
void park(Thread::State state, const char* what, Location where) {
  Thread* const me = self;
  me->state = state;
  me->waits_for = what;
  me->where = where;
  switch_context(me->context, engine().scheduler);
}

void release(Barrier& b) {
  b.result = b.sum;
  b.sum = b.arrived = b.expected = 0;
  for (Thread* t : b.waiting) make_ready(t);
  b.waiting.clear();
}

// Where all lanes have come, runs the instruction and lets them go.
void complete(Warp& warp) {
  for (size_t i = 0; i < warp.gatherings.size();) {
    Gathering& g = warp.gatherings[i];
    if (g.arrived != (g.mask & warp.alive)) {
      ++i;
      continue;
    }
    const Gathering done = g;
    warp.gatherings.erase(warp.gatherings.begin() + static_cast<std::ptrdiff_t>(i));
    if (done.arrived == 0) continue;
    done.run(done.f, done.lanes);
    for (int lane = 0; lane < 32; ++lane)
      if ((done.arrived >> lane & 1) && warp.lanes[lane] != self) make_ready(warp.lanes[lane]);
  }
}

void thread_ends() {
  Engine& e = engine();
  self->state = Thread::State::done;
  --self->block->alive;
  self->warp->alive &= ~(1u << self->lane);
  if (e.error) return;
  Barrier& all = self->block->barriers[0];
  if (!all.waiting.empty() && all.expected == 0 && all.arrived == self->block->alive) release(all);
  complete(*self->warp);
}

void thread_main() {
  Engine& e = engine();
  arrived_on_new_stack(e.scheduler);
  try {
    (*e.body)();
    thread_ends();
  } catch (...) {
    e.error = std::current_exception();
    e.culprit = self;
  }
  switch_context(self->context, e.scheduler, true);
}

// `count` threads in each block; the first block is the one at `first`.
void start_cluster(Engine& e, int count, uint3 first) {
  const int total = count * static_cast<int>(e.blocks.size()), warps = (count + 31) / 32;
  e.free_stacks.resize(static_cast<size_t>(total));
  std::iota(e.free_stacks.rbegin(), e.free_stacks.rend(), 0);
  e.ready.clear();
  e.polling.clear();
  for (Warp& w : e.warps) w = {};
  for (size_t rank = 0; rank < e.blocks.size(); ++rank) {
    e.blocks[rank] = {};
    e.blocks[rank].index = {first.x + static_cast<unsigned>(rank), first.y, first.z};
    e.blocks[rank].rank = static_cast<int>(rank);
    e.blocks[rank].alive = count;
  }
  for (int i = 0; i < total; ++i) {
    Thread& t = e.threads[static_cast<size_t>(i)];
    t.block = &e.blocks[static_cast<size_t>(i / count)];
    t.linear = i % count;
    const unsigned n = static_cast<unsigned>(t.linear);
    t.index = {n % block_size.x, n / block_size.x % block_size.y, n / (block_size.x * block_size.y)};
    t.lane = t.linear % 32;
    t.warp = &e.warps[static_cast<size_t>(i / count * warps + t.linear / 32)];
    t.warp->lanes[t.lane] = &t;
    t.warp->alive |= 1u << t.lane;
    t.stack = -1;
    t.describe = nullptr;
    if (!t.attached.empty()) t.attached.clear();
    make_ready(&t);
  }
}

// Says what its threads and blocks left behind.
void end_cluster(Engine& e, int count) {
  for (int i = 0; i < count * static_cast<int>(e.blocks.size()); ++i)
    for (auto& [type, object] : e.threads[static_cast<size_t>(i)].attached) object->end();
  for (Block& b : e.blocks) {
    block_index = b.index;
    for (auto& [type, object] : b.attached) object->end();
    select_shared(b.rank);
    check_shared();
  }
}

std::string who_waits(const Engine& e) {
  std::ostringstream out;
  int shown = 0;
  for (const Thread& t : e.threads) {
    if (t.state != Thread::State::waiting && t.state != Thread::State::polling) continue;
    if (++shown > 8) break;
    out << (shown > 1 ? "; " : "") << "thread " << triple(dim3(t.index));
    if (e.blocks.size() > 1) out << " of block " << triple(dim3(t.block->index));
    out << " in " << t.waits_for << (t.describe ? " " + (*t.describe)() : "") << " at " << place(t.where);
  }
  if (shown > 8) out << "; ...";
  const auto add = [&](const Attachments& all) {
    for (const auto& [type, object] : all)
      if (const std::string state = object->state(); !state.empty()) out << "; " << state;
  };
  for (const Block& b : e.blocks) add(b.attached);
  return out.str();
}

// Threads that poll go on where their condition now holds.
void poll(Engine& e) {
  std::vector<Thread*> still;
  for (Thread* t : e.polling) {
    if ((*t->condition)())
      make_ready(t);
    else
      still.push_back(t);
  }
  e.polling.swap(still);
}

Thread* next(Engine& e) {
  if (e.seed != 0) std::swap(e.ready.front(), e.ready[e.random() % e.ready.size()]);
  if (e.ahead) {
    const auto same = std::find_if(e.ready.begin(), e.ready.end(), [&](Thread* t) { return t->warp == e.last; });
    if (same != e.ready.end()) std::swap(e.ready.front(), *same);
  }
  Thread* t = e.ready.front();
  e.ready.pop_front();
  e.last = t->warp;
  return t;
}

// Lets a thread run until it waits or ends. It gets a stack when it first runs and leaves it when it ends, so that
// threads that never wait share one.
void resume(Engine& e, Thread& t) {
  if (t.stack < 0) {
    t.stack = e.free_stacks.back();
    e.free_stacks.pop_back();
    e.stacks.start(t.stack, t.context, thread_main);
  }
  self = &t;
  block_index = t.block->index;
  select_shared(t.block->rank);
  switch_context(e.scheduler, t.context);
  if (t.state == Thread::State::done) e.free_stacks.push_back(t.stack);
}

bool anyone_alive(const Engine& e) {
  for (const Block& b : e.blocks)
    if (b.alive > 0) return true;
  return false;
}

void run_cluster(Engine& e, int count, uint3 first) {
  start_cluster(e, count, first);
  while (anyone_alive(e)) {
    if (!e.polling.empty() && (e.ready.empty() || (e.seed != 0 && e.random() % 8 == 0))) poll(e);
    if (e.ready.empty()) fail("no thread can go on: " + who_waits(e));
    resume(e, *next(e));
    if (e.error) std::rethrow_exception(std::exchange(e.error, nullptr));
  }
  end_cluster(e, count);
}

void check(const Grid& g) {
  const auto sane = [](dim3 v, uint64_t x, uint64_t yz) { return v.x <= x && v.y <= yz && v.z <= yz; };
  if (!sane(g.blocks, 0x7fffffff, 65535)) fail("the grid " + triple(g.blocks) + " is larger than CUDA allows");
  const uint64_t threads = uint64_t{g.threads.x} * g.threads.y * g.threads.z;
  if (threads == 0 || threads > 1024 || g.threads.z > 64)
    fail("a block of " + triple(g.threads) + " threads is not one that CUDA allows");
  if (g.cluster < 1 || g.cluster > 16 || g.blocks.x % g.cluster != 0)
    fail("clusters of " + std::to_string(g.cluster) + " blocks: 1 to 16 that divide the grid along x will do");
}

// Clusters in order, or in a random one: i * step + first modulo their number, step having no divisor in common. f gets
// the first block.
template <class F>
void for_each_cluster(Engine& e, unsigned width, const F& f) {
  const unsigned along = grid_size.x / width;
  const uint64_t count = uint64_t{along} * grid_size.y * grid_size.z;
  uint64_t step = 1, first = 0;
  if (e.seed != 0 && count > 1) {
    first = e.random() % count;
    do step = e.random() % count;
    while (std::gcd(step, count) != 1);
  }
  for (uint64_t i = 0, n = first; i < count; ++i, n = (n + step) % count)
    f(uint3{static_cast<unsigned>(n % along) * width, static_cast<unsigned>(n / along % grid_size.y),
            static_cast<unsigned>(n / (uint64_t{along} * grid_size.y))});
}

}  // namespace

void run_grid(const Grid& grid, const std::function<void()>& body) {
  Engine& e = engine();
  const std::lock_guard<std::mutex> lock(e.turn);
  const int count = static_cast<int>(grid.threads.x * grid.threads.y * grid.threads.z);
  grid_size = grid.blocks;
  block_size = grid.threads;
  e.body = &body;
  e.culprit = nullptr;
  bool inside = false;
  try {
    check(grid);
    e.stacks.reserve(count * static_cast<int>(grid.cluster));
    e.threads.resize(static_cast<size_t>(count) * grid.cluster);
    e.warps.assign(static_cast<size_t>(count + 31) / 32 * grid.cluster, {});
    e.blocks.resize(grid.cluster);
    for_each_cluster(e, grid.cluster, [&](uint3 first) {
      inside = true;
      block_index = first;
      begin_shared(grid.shared_bytes, static_cast<int>(grid.cluster));
      run_cluster(e, count, first);
    });
    self = nullptr;
  } catch (const std::exception& error) {
    self = nullptr;
    std::string where = std::string("host_cuda: ") + grid.kernel + ", grid " + triple(grid.blocks) + ", block " +
                        triple(grid.threads) + ", " + std::to_string(grid.shared_bytes) + " bytes shared";
    if (inside) where += ", in block " + triple(dim3(block_index));
    if (e.culprit) where += ", thread " + triple(dim3(e.culprit->index));
    throw std::runtime_error(where + ": " + error.what());
  }
}

std::vector<Block>& cluster() { return engine().blocks; }

void set_order_seed(uint64_t seed) {
  Engine& e = engine();
  const std::lock_guard<std::mutex> lock(e.turn);
  e.seed = seed;
  e.random.seed(seed);
}

void set_warps_ahead(bool ahead) {
  Engine& e = engine();
  const std::lock_guard<std::mutex> lock(e.turn);
  e.ahead = ahead;
}

static Barrier& join(int id, int expected, const char* what, Location where, int64_t value) {
  auto& barriers = self->block->barriers;
  if (id < 0 || id >= static_cast<int>(barriers.size()))
    fail("a block has 16 barriers; this is number " + std::to_string(id));
  if (expected % 32 != 0) fail("a barrier counts whole warps; got " + std::to_string(expected) + " threads");
  Barrier& b = barriers[static_cast<size_t>(id)];
  if (b.arrived > 0 && b.expected != expected)
    fail(std::string(what) + " at " + place(where) + ": others came to barrier " + std::to_string(id) +
         " for another number of threads");
  b.expected = expected;
  // Those that wait are in one place already.
  const Thread* t = b.waiting.empty() ? nullptr : b.waiting.front();
  if (t && id == 0 && expected == 0 && (t->where.line() != where.line() || t->where.file_name() != where.file_name()))
    fail(std::string(what) + " at " + place(where) + ", while thread " + triple(dim3(t->index)) +
         " waits in another, at " + place(t->where));
  ++b.arrived;
  b.sum += value;
  return b;
}

int64_t barrier_sync(int id, int expected, const char* what, Location where, int64_t value) {
  Barrier& b = join(id, expected, what, where, value);
  if (b.arrived == (expected ? expected : self->block->alive)) {
    release(b);
  } else {
    b.waiting.push_back(self);
    park(Thread::State::waiting, what, where);
  }
  return b.result;
}

void barrier_arrive(int id, int expected, const char* what, Location where) {
  Barrier& b = join(id, expected, what, where, 0);
  if (b.arrived == expected) release(b);
}

void wait_until(const std::function<bool()>& condition, const char* what, Location where,
                const std::function<std::string()>* describe) {
  if (condition()) return;
  self->condition = &condition;
  self->describe = describe;
  engine().polling.push_back(self);
  park(Thread::State::polling, what, where);
  self->describe = nullptr;
}

void yield() {
  engine().last = nullptr;
  make_ready(self);
  park(Thread::State::ready, "", {});
}

void gather(const char* what, unsigned mask, void* mine, void (*run)(const void*, void* const (&)[32]), const void* f,
            Location where) {
  Warp& warp = *self->warp;
  const unsigned me = 1u << self->lane;
  if (!(mask & me)) fail(std::string(what) + " at " + place(where) + ": the calling lane is not in its own mask");
  Gathering* found = nullptr;
  for (Gathering& g : warp.gatherings) {
    if (!(g.mask & mask)) continue;
    if (g.mask != mask || (g.what != what && std::string_view(g.what) != what))
      fail(std::string(what) + " at " + place(where) + " meets other lanes of the warp in " + g.what +
           ", or with another mask");
    found = &g;
  }
  if (!found) found = &warp.gatherings.emplace_back(Gathering{what, mask});
  found->arrived |= me;
  found->lanes[self->lane] = mine;
  found->run = run;
  found->f = f;
  if (found->arrived == (mask & warp.alive))
    complete(warp);
  else
    park(Thread::State::waiting, what, where);
}

void require_full_warp(const char* what) {
  if (self->warp->alive != 0xffffffffu) fail(std::string(what) + " needs all 32 lanes of the warp");
}

}  // namespace atrousops::host_cuda
