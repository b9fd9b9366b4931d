// sm_90: clusters, mbarriers and TMA loads, from the PTX manual's rules and tables. Nothing here is shared with
// csrc/cuda/arch; a test holds the two against each other.
#include <algorithm>
#include <array>
#include <functional>
#include <map>

#include "host_cuda/encoded_map.h"
#include "machine.h"

namespace ptx {

// Clusters.
namespace {
struct ClusterBarrier : hc::Attached {
  int arrived = 0;
  int64_t phase = 0;
};
struct ClusterArrival : hc::Attached {
  int64_t phase = -1;
};
ClusterBarrier& cluster_barrier() { return hc::attached_to_block<ClusterBarrier>(hc::cluster()[0]); }
void end_cluster_phase(ClusterBarrier& b) {
  int alive = 0;
  for (const hc::Block& block : hc::cluster()) alive += block.alive;
  if (b.arrived == 0 || b.arrived < alive) return;
  b.arrived = 0;
  ++b.phase;
}
}  // namespace

void cluster_arrive(int line) {
  ClusterArrival& mine = hc::attached<ClusterArrival>();
  if (mine.phase >= 0) fail("barrier.cluster.arrive: twice without barrier.cluster.wait", line);
  ClusterBarrier& b = cluster_barrier();
  mine.phase = b.phase;
  ++b.arrived;
  end_cluster_phase(b);
}
void cluster_wait(int line) {
  ClusterArrival& mine = hc::attached<ClusterArrival>();
  if (mine.phase < 0) fail("barrier.cluster.wait: without barrier.cluster.arrive", line);
  ClusterBarrier& b = cluster_barrier();
  hc::wait_until(
      [&] {
        end_cluster_phase(b);
        return b.phase > mine.phase;
      },
      "barrier.cluster.wait", here(line));
  mine.phase = -1;
  ++hc::attached<Passed>().barriers;
}
void trap(int line) { fail("trap", line); }
uint32_t mapa(uint32_t address, uint32_t rank, int line) {
  if (rank >= hc::cluster().size()) fail("mapa: the cluster has no block of rank " + std::to_string(rank), line);
  return own_address(address) | (rank + 1) << kRankShift;
}

// mbarriers: a phase ends when no arrival and no byte is outstanding.
namespace {
struct Mbarrier {
  int64_t expected, pending, bytes = 0, phase = 0;
  const hc::Thread* made_by;
  bool fenced = false, proxy_fenced = false;
  // What copies of a phase bring; it is there once somebody has seen the phase end.
  std::vector<std::pair<int64_t, std::function<void()>>> landings;
};
struct Mbarriers : hc::Attached {
  std::map<uint32_t, Mbarrier> all;
  std::string state() const override {
    std::string text;
    for (const auto& [address, b] : all)
      text += "mbarrier " + std::to_string(address) + " in phase " + std::to_string(b.phase) + " lacks " +
              std::to_string(b.pending) + " arrivals and " + std::to_string(b.bytes) + " bytes; ";
    return text;
  }
  void end() override {
    for (const auto& [address, b] : all)
      if (!b.landings.empty()) hc::fail("the block ended with copies under way on mbarrier " + std::to_string(address));
  }
};
Mbarriers& mbarriers_of(int rank) { return hc::attached_to_block<Mbarriers>(hc::cluster()[static_cast<size_t>(rank)]); }
uint64_t mark_of(uint32_t address) { return 0x7261625f6d780000u ^ address; }

Mbarrier& mbarrier_at(uint64_t address, const char* what, int line) {
  const uint64_t mark = mark_of(own_address(address));
  const char* bytes = cluster_bytes(address, 8, 8, what, line);
  auto& all = mbarriers_of(rank_of(address)).all;
  const auto found = all.find(own_address(address));
  if (found == all.end()) fail(std::string(what) + ": no mbarrier was initialised there", line);
  if (std::memcmp(bytes, &mark, 8) != 0) fail(std::string(what) + ": the mbarrier was overwritten", line);
  return found->second;
}
void end_phase(Mbarrier& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  ++b.phase;
  b.pending = b.expected;
}
void add_bytes(Mbarrier& b, int64_t bytes, const char* what, int line) {
  b.bytes += bytes;
  if (std::abs(b.bytes) >= 1 << 20) fail(std::string(what) + ": a phase counts less than 1 MiB", line);
}
}  // namespace

void mbarrier_init(uint64_t address, uint32_t count, int line) {
  char* bytes = cluster_bytes(address, 8, 8, "mbarrier.init", line);
  if (count < 1 || count >= 1u << 20) fail("mbarrier.init: a count of " + std::to_string(count), line);
  auto& all = mbarriers_of(hc::self->block->rank).all;
  if (all.count(own_address(address))) fail("mbarrier.init: an mbarrier is in use there", line);
  all[own_address(address)] = Mbarrier{.expected = count, .pending = count, .made_by = hc::self, .landings = {}};
  const uint64_t mark = mark_of(own_address(address));
  std::memcpy(bytes, &mark, 8);
}
void mbarrier_inval(uint64_t address, int line) {
  mbarrier_at(address, "mbarrier.inval", line);
  mbarriers_of(hc::self->block->rank).all.erase(own_address(address));
}
void mbarrier_arrive(uint64_t address, uint32_t count, int line) {
  Mbarrier& b = mbarrier_at(address, "mbarrier.arrive", line);
  if (rank_of(address) != hc::self->block->rank && !b.fenced)
    fail("mbarrier.arrive: no fence.mbarrier_init behind the other block's mbarrier.init", line);
  if (count < 1 || count > b.pending)
    fail("mbarrier.arrive: " + std::to_string(count) + " arrivals, but the phase lacks " + std::to_string(b.pending),
         line);
  b.pending -= count;
  end_phase(b);
}
void mbarrier_expect(uint64_t address, uint32_t bytes, int line) {
  add_bytes(mbarrier_at(address, "mbarrier.expect_tx", line), bytes, "mbarrier.expect_tx", line);
}
void fence_mbarrier_init(int) {
  for (auto& [address, b] : mbarriers_of(hc::self->block->rank).all)
    if (b.made_by == hc::self) b.fenced = true;
}
void fence_proxy_of_mbarriers() {
  for (auto& [address, b] : mbarriers_of(hc::self->block->rank).all)
    if (b.made_by == hc::self) b.proxy_fenced = true;
}

// 16 bytes that land when somebody has seen their phase end.
void store_async(uint64_t to, const uint32_t (&v)[4], uint64_t barrier, int line) {
  const char* what = "st.async";
  if (rank_of(to) != rank_of(barrier)) fail("st.async: the barrier of another block than the place", line);
  Mbarrier& b = mbarrier_at(barrier, what, line);
  if (!b.fenced) fail("st.async: no fence.mbarrier_init behind the mbarrier.init", line);
  std::memset(cluster_bytes(to, 16, 16, what, line), 0xff, 16);
  const std::array<uint32_t, 4> words{v[0], v[1], v[2], v[3]};
  b.landings.emplace_back(b.phase, [=] { std::memcpy(cluster_bytes(to, 16, 16, what, line), words.data(), 16); });
  add_bytes(b, -16, what, line);
  end_phase(b);
}

namespace {
struct Tried : hc::Attached {
  bool once = false;
};
}  // namespace

// The first attempt comes back early, as the manual allows; the second waits.
bool mbarrier_try_wait(uint64_t address, uint32_t parity, int line) {
  if (parity > 1) fail("mbarrier.try_wait: a parity of " + std::to_string(parity), line);
  if (rank_of(address) != hc::self->block->rank) fail("mbarrier.try_wait: at another block's barrier", line);
  Mbarrier& b = mbarrier_at(address, "mbarrier.try_wait", line);
  bool& tried = hc::attached<Tried>().once;
  const auto ended = [&] { return (b.phase & 1) != static_cast<int64_t>(parity); };
  if (!ended()) {
    if (!tried) {
      tried = true;
      hc::yield();
      return false;
    }
    const std::function<std::string()> describe = [&] {
      return "for parity " + std::to_string(parity) + " of mbarrier " + std::to_string(own_address(address)) +
             ", PTX line " + std::to_string(line);
    };
    hc::wait_until(ended, "mbarrier.try_wait", here(line), &describe);
  }
  tried = false;
  auto landings = std::move(b.landings);
  b.landings.clear();
  for (auto& [phase, land] : landings)
    if (phase < b.phase)
      land();
    else
      b.landings.emplace_back(phase, std::move(land));
  return true;
}

// TMA.
namespace {
int element_bytes(int type) {
  switch (type) {
    case 0: return 1;
    case 6:
    case 9: return 2;
    case 7:
    case 11: return 4;
    default: return 0;
  }
}
uint32_t nearest_tf32(uint32_t word) {
  if ((word >> 23 & 255) == 255) return word;
  return (word + 0xfff + (word >> 13 & 1)) >> 13 << 13;
}

struct Box {
  atrousops::host_cuda::EncodedMap map;
  int32_t at[5];
  int extent[5];
  int size, count = 1;
  Box(uint64_t address, int rank, const int32_t* coordinates, int line) {
    // A map is a parameter, or in global memory.
    const char* bytes = is_parameter(address, 128) ? reinterpret_cast<const char*>(address)
                                                   : checked_global(address, 128, "the tensor map", line);
    std::memcpy(&map, bytes, sizeof map);
    if (address % 64 != 0) fail("a tensor map is aligned to 64 bytes", line);
    if (map.mark != map.kMark) fail("cp.async.bulk.tensor: this is no tensor map", line);
    if (map.rank != rank) fail("cp.async.bulk.tensor: the map has rank " + std::to_string(map.rank), line);
    size = element_bytes(map.type);
    if (size == 0) fail("cp.async.bulk.tensor: an element type that is not emulated", line);
    for (int d = 0; d < rank; ++d) {
      at[d] = coordinates[d];
      const int stride = d == 0 ? 1 : map.element_strides[d];
      extent[d] = (map.box[d] + stride - 1) / stride;
      count *= extent[d];
    }
  }
  uint32_t bytes() const { return static_cast<uint32_t>(count * size); }
  uint32_t mask() const { return (1u << map.swizzle) - 1; }
  // Where element n comes from, or null outside the tensor.
  const char* source(int n) const {
    uint64_t address = map.address;
    for (int d = 0; d < map.rank; ++d) {
      const int64_t x = int64_t{at[d]} + int64_t{n % extent[d]} * (d == 0 ? 1 : map.element_strides[d]);
      n /= extent[d];
      if (x < 0 || x > int64_t{map.last[d]}) return nullptr;
      address += static_cast<uint64_t>(x) * (d == 0 ? static_cast<uint64_t>(size) : map.strides[d - 1]);
    }
    return reinterpret_cast<const char*>(address);
  }
};

void load_box(const Box& box, uint64_t to, uint64_t barrier, int line) {
  const char* what = "cp.async.bulk.tensor";
  const uint32_t period = box.map.swizzle == 0 ? 128 : 128u << box.map.swizzle;
  if (own_address(to) % period != 0)
    fail(std::string(what) + ": the shared address is not a multiple of " + std::to_string(period), line);
  Mbarrier& b = mbarrier_at(barrier, what, line);
  if (!b.fenced || !b.proxy_fenced)
    fail(std::string(what) + ": no " + (b.fenced ? "fence.proxy.async" : "fence.mbarrier_init") +
             " behind the mbarrier.init",
         line);
  std::memset(async_write(to, box.bytes(), what, line), 0xff, box.bytes());
  const int phase = static_cast<int>(b.phase);
  b.landings.emplace_back(phase, [box, to, what, line] {
    char* first = async_write(to, box.bytes(), what, line);
    const uint32_t base = own_address(to);
    for (int n = 0; n < box.count; ++n) {
      uint32_t word = 0;
      if (const char* from = box.source(n))
        std::memcpy(&word,
                    checked_global(reinterpret_cast<uint64_t>(from), static_cast<uint64_t>(box.size), what, line),
                    static_cast<size_t>(box.size));
      if (box.map.type == 11) word = nearest_tf32(word);
      const uint32_t place = exchanged(base + static_cast<uint32_t>(n * box.size), box.mask()) - base;
      std::memcpy(first + place, &word, static_cast<size_t>(box.size));
    }
  });
  add_bytes(b, -int64_t{box.bytes()}, what, line);
  end_phase(b);
}
}  // namespace

void tma_load(int rank, uint64_t to, uint64_t map, const int32_t* at, uint64_t barrier, uint32_t blocks, int line) {
  const Box box(map, rank, at, line);
  if (blocks == 0) return load_box(box, to, barrier, line);
  for (uint32_t r = 0; r < 16; ++r)
    if (blocks >> r & 1)
      load_box(box, mapa(static_cast<uint32_t>(to), r, line), mapa(static_cast<uint32_t>(barrier), r, line), line);
}

}  // namespace ptx
