// Kernels by name, their launches, memory, and what lanes and threads do together.
#include "machine.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <map>
#include <random>

#include "host_cuda/shared_memory.h"

// The engine's own shared memory is not used: addresses here are as nvcc laid them out.
namespace atrousops::host_cuda {
void begin_shared(int64_t, int) {}
void select_shared(int) {}
void check_shared() {}
}  // namespace atrousops::host_cuda

namespace ptx {
namespace {

struct Machine {
  std::map<std::string, const KernelEntry*> kernels;
  Resolver resolver = nullptr;
  FindBlock find_block = nullptr;
  // Found in this launch, by the line that asked: one instruction mostly stays in one block.
  std::array<MemoryBlock, 64> blocks;
  Variable variable = nullptr;
  std::string error;
  uint64_t seed = 0;
  bool apart = false;
  std::mt19937_64 random;
  const KernelEntry* running = nullptr;
  void** arguments = nullptr;
  uint32_t shared_end = 0;
  std::array<Window, 16> windows;
  std::vector<std::pair<uint64_t, uint64_t>> mapped;
};
// It outlives every static destructor.
Machine* const the_machine = new Machine;
Machine& machine() { return *the_machine; }

// Made by the first thread of a block.
struct Fresh : hc::Attached {
  bool done = false;
};

void enter_block() {
  Machine& m = machine();
  Fresh& fresh = hc::attached_to_block<Fresh>(*hc::self->block);
  if (fresh.done) return;
  fresh.done = true;
  Window& w = window(hc::self->block->rank);
  w.bytes.assign(m.shared_end, char(0xff));
  if (m.running->async_proxy) w.unfenced.assign(m.shared_end / 4 + 1, {});
}

void read_mapped_ranges() {
  std::ifstream maps("/proc/self/maps");
  auto& ranges = machine().mapped;
  ranges.clear();
  for (std::string line; std::getline(maps, line);) {
    unsigned long long begin, end;
    if (std::sscanf(line.c_str(), "%llx-%llx r", &begin, &end) != 2 || line.find(" r") == std::string::npos) continue;
    if (!ranges.empty() && ranges.back().second == begin)
      ranges.back().second = end;
    else
      ranges.emplace_back(begin, end);
  }
}

bool is_mapped(uint64_t address, uint64_t bytes) {
  static uint64_t begin = 0, end = 0;
  const auto& ranges = machine().mapped;
  if (address >= begin && address + bytes <= end) return true;
  auto it = std::upper_bound(ranges.begin(), ranges.end(), std::pair{address, ~uint64_t{0}});
  if (it == ranges.begin()) return false;
  --it;
  if (address + bytes > it->second) return false;
  std::tie(begin, end) = *it;
  return true;
}

char* shared_bytes(uint64_t address, uint32_t bytes, const char* what, int line) {
  run_apart();
  Window& w = machine().windows[static_cast<size_t>(hc::self->block->rank)];
  if (address >= kFirst && address + bytes <= w.bytes.size() && address % bytes == 0) return w.bytes.data() + address;
  if (address >> kRankShift)
    fail(std::string(what) + ": an address of the cluster in an instruction for the block's memory", line);
  return cluster_bytes(address, bytes, bytes, what, line);
}

}  // namespace

void run_apart() {
  Machine& m = machine();
  if (m.apart && m.random() % 4 == 0) hc::yield();
}

void mark_written(int rank, uint32_t address, uint32_t bytes) {
  if (!machine().running->async_proxy) return;
  Window& w = window(rank);
  const Window::Mark mark{static_cast<uint32_t>(hc::self->linear + 1024 * hc::self->block->rank + 1),
                          hc::attached<Passed>().barriers};
  for (uint32_t i = address / 4; i <= (address + bytes - 1) / 4; ++i) w.unfenced[i] = mark;
}

void fail(const std::string& what, int line) {
  const KernelEntry* k = machine().running;
  hc::fail(what + " (" + (k ? k->file : "?") + ":" + std::to_string(line) + ")");
}

hc::Location here(int) { return hc::Location::current(); }

Window& window(int rank) { return machine().windows.at(static_cast<size_t>(rank)); }

char* cluster_bytes(uint64_t address, uint32_t bytes, uint32_t align, const char* what, int line) {
  const int rank = rank_of(address);
  const uint64_t begin = address >> 32 ? address : own_address(address);
  const auto& blocks = hc::cluster();
  if (rank < 0 || rank >= static_cast<int>(blocks.size()) || blocks[static_cast<size_t>(rank)].alive == 0)
    fail(std::string(what) + ": no block of rank " + std::to_string(rank) + " runs in the cluster", line);
  Window& w = window(rank);
  if (begin < kFirst || begin + bytes > w.bytes.size())
    fail(std::string(what) + ": " + std::to_string(bytes) + " bytes at shared address " + std::to_string(begin) +
             "; the block has " + std::to_string(kFirst) + " to " + std::to_string(w.bytes.size()),
         line);
  if (begin % align != 0)
    fail(std::string(what) + ": shared address " + std::to_string(begin) + " is not a multiple of " +
             std::to_string(align),
         line);
  return w.bytes.data() + begin;
}

const char* async_read(uint64_t address, uint32_t bytes, const char* what, int line) {
  const char* p = cluster_bytes(address, bytes, 1, what, line);
  const Window& w = window(rank_of(address));
  const uint32_t begin = own_address(address);
  for (uint32_t i = begin / 4; i <= (begin + bytes - 1) / 4; ++i)
    if (w.unfenced[i].writer)
      fail(std::string(what) + ": thread " + std::to_string(w.unfenced[i].writer - 1) + " stored to shared address " +
               std::to_string(4 * i) + ", and no fence.proxy.async followed",
           line);
  return p;
}

char* async_write(uint64_t address, uint32_t bytes, const char* what, int line) {
  char* p = cluster_bytes(address, bytes, 1, what, line);
  Window& w = window(rank_of(address));
  const uint32_t begin = own_address(address);
  std::fill(w.unfenced.begin() + begin / 4, w.unfenced.begin() + (begin + bytes - 1) / 4 + 1, Window::Mark{});
  return p;
}

char* checked_global(uint64_t address, uint64_t bytes, const char* what, int line) {
  Machine& m = machine();
  char* const p = reinterpret_cast<char*>(address);
  if (m.find_block) {
    MemoryBlock& block = m.blocks[static_cast<unsigned>(line) % m.blocks.size()];
    const bool is_known = p >= block.begin && p + bytes <= block.begin + block.bytes;
    if (is_known || m.find_block(p, bytes, &block)) return block.memory + (p - block.begin);
  } else if (is_mapped(address, bytes)) {
    return p;
  }
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(address));
  fail(std::string(what) + ": " + std::to_string(bytes) + " bytes at " + text + " are not device memory", line);
}

bool is_parameter(uint64_t address, uint64_t bytes) {
  const Machine& m = machine();
  for (int i = 0; i < m.running->params; ++i)
    if (const uint64_t from = address - reinterpret_cast<uint64_t>(m.arguments[i]); from < m.running->param_bytes[i])
      return from + bytes <= m.running->param_bytes[i];
  return false;
}
uint64_t variable(const char* name) {
  const uint64_t address = machine().variable ? machine().variable(name) : 0;
  if (!address) fail(std::string("nobody knows the variable ") + name, 0);
  return address;
}

char* global_at(uint64_t address, uint32_t bytes, int line) {
  run_apart();
  if (address % bytes != 0)
    fail("global address " + std::to_string(address) + " is not a multiple of " + std::to_string(bytes), line);
  return checked_global(address, bytes, "global memory", line);
}
char* shared_load(uint64_t address, uint32_t bytes, int line) {
  return shared_bytes(address, bytes, "ld.shared", line);
}
char* shared_store(uint64_t address, uint32_t bytes, int line) {
  char* p = shared_bytes(address, bytes, "st.shared", line);
  mark_written(hc::self->block->rank, static_cast<uint32_t>(address), bytes);
  return p;
}
char* cluster_load(uint64_t address, uint32_t bytes, int line) {
  run_apart();
  return cluster_bytes(address, bytes, bytes, "ld.shared::cluster", line);
}
char* cluster_store(uint64_t address, uint32_t bytes, int line) {
  run_apart();
  char* p = cluster_bytes(address, bytes, bytes, "st.shared::cluster", line);
  mark_written(rank_of(address), own_address(address), bytes);
  return p;
}
void let_others_run() { hc::yield(); }

void fence_proxy_async(int) {
  fence_proxy_of_mbarriers();
  const auto me = static_cast<uint32_t>(hc::self->linear + 1024 * hc::self->block->rank + 1);
  const uint32_t passed = hc::attached<Passed>().barriers;
  for (const hc::Block& b : hc::cluster())
    for (Window::Mark& mark : window(b.rank).unfenced)
      if (mark.writer == me || mark.epoch < passed) mark = {};
}

int64_t barrier(int id, int threads, bool value, int line) {
  const int64_t sum = hc::barrier_sync(id, threads, "bar.sync", here(line), value);
  ++hc::attached<Passed>().barriers;
  return sum;
}
void sync_warp(uint32_t mask, int line) {
  int nothing = 0;
  hc::warp_together("bar.warp.sync", mask, nothing, [](int* const(&)[32]) {}, here(line));
}

std::pair<uint32_t, bool> shuffle(Shuffle kind, uint32_t value, uint32_t b, uint32_t c, uint32_t mask, int line) {
  struct Lane {
    uint32_t value, result;
    int from;
  };
  const int lane = hc::self->lane, segment = static_cast<int>(c >> 8 & 31), clamp = static_cast<int>(c & 31);
  const int shift = static_cast<int>(b & 31), low = lane & segment, limit = low | (clamp & ~segment);
  int from = 0;
  switch (kind) {
    case Shuffle::idx: from = low | (shift & ~segment); break;
    case Shuffle::up: from = lane - shift; break;
    case Shuffle::down: from = lane + shift; break;
    case Shuffle::bfly: from = lane ^ shift; break;
  }
  const bool inside = kind == Shuffle::up ? from >= limit : from <= limit;
  Lane mine{value, value, inside ? from : lane};
  hc::warp_together(
      "shfl", mask, mine,
      [](Lane* const(&lanes)[32]) {
        for (Lane* l : lanes)
          if (l) l->result = lanes[l->from] ? lanes[l->from]->value : ~0u;
      },
      here(line));
  return {mine.result, inside};
}

namespace {
// All lanes get f(bits of those whose value holds, bits of those present).
template <class F>
uint32_t vote(const char* what, bool value, uint32_t mask, int line, const F& f) {
  struct Lane {
    bool value;
    uint32_t result;
  } mine{value, 0};
  hc::warp_together(
      what, mask, mine,
      [&](Lane* const(&lanes)[32]) {
        uint32_t yes = 0, present = 0;
        for (int i = 0; i < 32; ++i)
          if (lanes[i]) present |= 1u << i, yes |= uint32_t{lanes[i]->value} << i;
        for (Lane* l : lanes)
          if (l) l->result = f(yes, present);
      },
      here(line));
  return mine.result;
}
}  // namespace

uint32_t ballot(bool value, uint32_t mask, int line) {
  return vote("vote.ballot", value, mask, line, [](uint32_t yes, uint32_t) { return yes; });
}
bool vote_all(bool value, uint32_t mask, int line) {
  return vote("vote.all", value, mask, line, [](uint32_t yes, uint32_t present) { return yes == present; });
}
bool vote_any(bool value, uint32_t mask, int line) {
  return vote("vote.any", value, mask, line, [](uint32_t yes, uint32_t) { return yes != 0; });
}
bool elect(uint32_t mask, int line) {
  return vote("elect.sync", true, mask, line, [](uint32_t, uint32_t p) { return p & -p; }) == 1u << hc::self->lane;
}
uint32_t reduce_add(uint32_t value, uint32_t mask, int line) {
  struct Lane {
    uint32_t value, sum;
  } mine{value, 0};
  hc::warp_together(
      "redux.sync.add", mask, mine,
      [](Lane* const(&lanes)[32]) {
        uint32_t sum = 0;
        for (Lane* l : lanes) sum += l ? l->value : 0;
        for (Lane* l : lanes)
          if (l) l->sum = sum;
      },
      here(line));
  return mine.sum;
}

uint32_t sreg_tid_x() { return hc::self->index.x; }
uint32_t sreg_tid_y() { return hc::self->index.y; }
uint32_t sreg_tid_z() { return hc::self->index.z; }
uint32_t sreg_ntid_x() { return hc::block_size.x; }
uint32_t sreg_ntid_y() { return hc::block_size.y; }
uint32_t sreg_ntid_z() { return hc::block_size.z; }
uint32_t sreg_ctaid_x() { return hc::self->block->index.x; }
uint32_t sreg_ctaid_y() { return hc::self->block->index.y; }
uint32_t sreg_ctaid_z() { return hc::self->block->index.z; }
uint32_t sreg_nctaid_x() { return hc::grid_size.x; }
uint32_t sreg_nctaid_y() { return hc::grid_size.y; }
uint32_t sreg_nctaid_z() { return hc::grid_size.z; }
uint32_t sreg_laneid() { return static_cast<uint32_t>(hc::self->lane); }
uint32_t sreg_cluster_ctarank() { return static_cast<uint32_t>(hc::self->block->rank); }
uint32_t sreg_cluster_nctarank() { return static_cast<uint32_t>(hc::cluster().size()); }

}  // namespace ptx

using ptx::machine;

int ptx_add(const KernelEntry* kernel) {
  machine().kernels[kernel->name] = kernel;
  return 0;
}
void ptx_set_resolver(Resolver resolver) { machine().resolver = resolver; }
void ptx_set_variables(Variable variable) { machine().variable = variable; }
void ptx_set_memory(FindBlock find) { machine().find_block = find; }
void ptx_set_order(uint64_t seed, int mode) {
  machine().seed = seed;
  machine().apart = mode == 1;
  ptx::hc::set_warps_ahead(mode == 2);
}
const char* ptx_error() { return machine().error.c_str(); }

int ptx_execute(const char* name, Dim3 grid, Dim3 block, size_t shared, unsigned cluster, void** args) {
  auto& m = machine();
  auto found = m.kernels.find(name);
  if (found == m.kernels.end() && m.resolver && m.resolver(name)) found = m.kernels.find(name);
  if (found == m.kernels.end()) {
    m.error = std::string("no PTX was translated for ") + name;
    return 98;
  }
  const KernelEntry& k = *found->second;
  try {
    if (k.max_threads && uint64_t{block.x} * block.y * block.z > k.max_threads)
      ptx::hc::fail(std::string(name) + " was compiled for at most " + std::to_string(k.max_threads) + " threads");
    m.running = &k;
    m.arguments = args;
    m.shared_end = static_cast<uint32_t>(shared ? k.dynamic + shared : k.static_end);
    m.blocks.fill({});
    if (!m.find_block) ptx::read_mapped_ranges();
    // CUB's scans wait for blocks of smaller index, which GPUs start first.
    const bool ordered = std::string_view(name).find("3cub") != std::string_view::npos;
    m.random.seed(m.seed);
    ptx::hc::set_order_seed(ordered ? 0 : m.seed);
    ptx::hc::run_grid(
        {dim3(grid.x, grid.y, grid.z), dim3(block.x, block.y, block.z), static_cast<int64_t>(shared), name, cluster},
        [&] {
          ptx::enter_block();
          k.run(args);
        });
  } catch (const std::exception& e) {
    m.error = std::string("PTX: ") + e.what();
    return 719;
  }
  return 0;
}
