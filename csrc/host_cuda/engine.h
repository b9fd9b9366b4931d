// Runs CUDA kernels on the CPU, for tests: a fiber for each thread, one cluster of blocks (mostly a single block) after
// the other, one launch at a time. A fiber runs until it waits for others, so that a thread that needs a barrier that
// is not there finds memory unwritten.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <source_location>
#include <string>
#include <typeindex>
#include <utility>
#include <vector>

#include "host_cuda/fiber.h"
#include "host_cuda/types.h"

namespace atrousops::host_cuda {

using Location = std::source_location;

struct Warp;
struct Block;

// What an instruction remembers for a thread or for a block.
struct Attached {
  virtual ~Attached() = default;
  // For the report of a deadlock; empty if there is nothing to say.
  virtual std::string state() const { return ""; }
  // Called when all threads of a cluster have ended; throws for what may not be left unfinished.
  virtual void end() {}
};
using Attachments = std::vector<std::pair<std::type_index, std::shared_ptr<Attached>>>;

// One CUDA thread.
struct Thread {
  uint3 index{};
  int linear = 0, lane = 0, stack = -1;
  Warp* warp = nullptr;
  Block* block = nullptr;
  Context context;
  enum class State { ready, waiting, polling, done } state = State::ready;
  // What it waits for, and where, for the report of a deadlock.
  const char* waits_for = "";
  Location where;
  const std::function<bool()>* condition = nullptr;
  const std::function<std::string()>* describe = nullptr;
  Attachments attached;
};

// Lanes of a warp that come together for one instruction.
struct Gathering {
  const char* what;
  unsigned mask, arrived = 0;
  void* lanes[32] = {};
  void (*run)(const void* f, void* const (&lanes)[32]) = nullptr;
  const void* f = nullptr;
};
struct Warp {
  Thread* lanes[32] = {};
  unsigned alive = 0;
  std::vector<Gathering> gatherings;
};

struct Barrier {
  int arrived = 0, expected = 0;
  int64_t sum = 0, result = 0;
  std::vector<Thread*> waiting;
};

// One of those that run now.
struct Block {
  uint3 index{};
  int rank = 0, alive = 0;
  std::array<Barrier, 16> barriers;
  Attachments attached;
};

// What a launch runs in; `cluster` blocks that follow each other along x run together.
struct Grid {
  dim3 blocks, threads;
  int64_t shared_bytes;
  const char* kernel;
  unsigned cluster = 1;
};

// The thread that runs now, and its surroundings; read by threadIdx and the like.
extern Thread* self;
extern dim3 grid_size, block_size;
extern uint3 block_index;
// The blocks of the cluster that runs now, by rank.
std::vector<Block>& cluster();

// Runs `body` once for every thread of the grid. Throws std::runtime_error with the kernel's name, the block and the
// thread for what a thread threw, a deadlock, or a write outside shared memory.
void run_grid(const Grid& grid, const std::function<void()>& body);

// The order in which threads and blocks run: ascending for seed 0, random for others.
void set_order_seed(uint64_t seed);
// A warp goes on for as long as it can before another one runs: far ahead of those that it should have waited for.
void set_warps_ahead(bool ahead);

// Waits until `expected` threads of the block have come to barrier `id` (0: all that have not ended), and returns the
// sum of what they brought.
int64_t barrier_sync(int id, int expected, const char* what, Location where, int64_t value = 0);
// Counts as one of `expected`, but does not wait.
void barrier_arrive(int id, int expected, const char* what, Location where);

// Waits until the condition holds; others make it true. For memory barriers that are polled. `describe` adds to the
// report of a deadlock.
void wait_until(const std::function<bool()>& condition, const char* what, Location where,
                const std::function<std::string()>* describe = nullptr);

// Lets other threads that can run go first.
void yield();

// Throws std::runtime_error.
[[noreturn]] void fail(const std::string& message);

void gather(const char* what, unsigned mask, void* mine, void (*run)(const void*, void* const (&)[32]), const void* f,
            Location where);

// One instruction of a warp. When all lanes in `mask` that have not ended are here, f(lanes) is called once, with a
// pointer to each lane's `mine` (null for a lane that is not here), and then all go on.
template <class Mine, class F>
void warp_together(const char* what, unsigned mask, Mine& mine, const F& f, Location where = Location::current()) {
  const auto run = [](const void* f, void* const(&lanes)[32]) {
    Mine* typed[32];
    for (int i = 0; i < 32; ++i) typed[i] = static_cast<Mine*>(lanes[i]);
    (*static_cast<const F*>(f))(typed);
  };
  gather(what, mask, &mine, run, &f, where);
}

// For instructions that PTX calls .aligned: all 32 lanes, or an error.
void require_full_warp(const char* what);
// The same, and none goes on before all are here; then f() once.
template <class F>
void full_warp_together(const char* what, const F& f) {
  require_full_warp(what);
  int nothing = 0;
  warp_together(what, ~0u, nothing, [&](int* const(&)[32]) { f(); });
}

template <class T>
T& attached_in(Attachments& all) {
  for (auto& [type, object] : all)
    if (type == typeid(T)) return static_cast<T&>(*object);
  all.emplace_back(typeid(T), std::make_shared<T>());
  return static_cast<T&>(*all.back().second);
}
// An object of the running thread or of a block, made at its first use in a block and gone with the block.
template <class T>
T& attached() {
  return attached_in<T>(self->attached);
}
template <class T>
T& attached_to_block(Block& block) {
  return attached_in<T>(block.attached);
}

}  // namespace atrousops::host_cuda
