// sm_90: clusters, mbarriers, TMA loads and wgmma, from the PTX manual's rules and tables. Nothing here is shared with
// csrc/cuda/arch; a test holds the two against each other.
#include <algorithm>
#include <functional>
#include <map>

#include "host_cuda/encoded_map.h"
#include "machine.h"

namespace ptx {

float operand_value(Operand type, uint32_t bits);

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
      if (!b.landings.empty())
        hc::fail("the block ended with copies under way on mbarrier " + std::to_string(address));
  }
};
Mbarriers& mbarriers_of(int rank) {
  return hc::attached_to_block<Mbarriers>(hc::cluster()[static_cast<size_t>(rank)]);
}
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
// 16-byte pieces of a 128-byte line change places by address bits 7 and up; the mask is 1, 3 or 7.
uint32_t exchanged(uint32_t address, uint32_t mask) { return address ^ ((address >> 7) & mask) << 4; }

int element_bytes(int type) {
  switch (type) {
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
    std::memcpy(&map, checked_global(address, 128, "the tensor map", line), sizeof map);
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
             " behind the mbarrier.init", line);
  std::memset(async_write(to, box.bytes(), what, line), 0xff, box.bytes());
  const int phase = static_cast<int>(b.phase);
  b.landings.emplace_back(phase, [box, to, what, line] {
    char* first = async_write(to, box.bytes(), what, line);
    const uint32_t base = own_address(to);
    for (int n = 0; n < box.count; ++n) {
      uint32_t word = 0;
      if (const char* from = box.source(n))
        std::memcpy(&word, checked_global(reinterpret_cast<uint64_t>(from), static_cast<uint64_t>(box.size), what, line),
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

// wgmma. Each warp computes its 16 rows; the result is in the registers once the warp has waited for its group, and
// until then they hold NaN.
namespace {
struct Descriptor {
  uint32_t start, leading, stride, span, mask;
  Descriptor(uint64_t bits, int line) {
    start = static_cast<uint32_t>(bits & 0x3fff) << 4;
    leading = static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4;
    stride = static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4;
    const uint32_t layout = static_cast<uint32_t>(bits >> 62);
    span = layout == 0 ? 0 : layout == 1 ? 128 : layout == 2 ? 64 : 32;
    mask = layout == 0 ? 0 : layout == 1 ? 7 : layout == 2 ? 3 : 1;
    if (bits >> 49 & 7) fail("wgmma: a base offset, which is not emulated", line);
    if (bits & 0x3c01c000c000c000u) fail("wgmma: bits of the descriptor that have to be 0", line);
  }
  // The byte of element (mn, k) of `es` bytes.
  uint32_t address(int mn, int k, int es, bool mn_major) const {
    const int chunk = 16 / es;
    int64_t offset;
    if (!mn_major && span)
      offset = mn % 8 * int64_t{span} + int64_t{mn / 8} * stride + k * es;
    else if (!mn_major)
      offset = mn % 8 * 16 + int64_t{mn / 8} * stride + k % chunk * es + int64_t{k / chunk} * leading;
    else if (span) {
      const int width = static_cast<int>(span) / 16;
      offset = mn % chunk * es + mn / chunk % width * 16 + int64_t{mn / (chunk * width)} * leading +
               k % 8 * int64_t{span} + int64_t{k / 8} * stride;
    } else
      offset = mn % chunk * es + int64_t{mn / chunk} * stride + k % 8 * 16 + int64_t{k / 8} * leading;
    return exchanged(static_cast<uint32_t>(start + offset), mask);
  }
};

uint32_t element(const Descriptor& d, int mn, int k, int es, bool mn_major, int line) {
  uint32_t bits = 0;
  std::memcpy(&bits, async_read(d.address(mn, k, es, mn_major), static_cast<uint32_t>(es), "wgmma", line),
              static_cast<size_t>(es));
  return bits;
}

// What a warp has under way.
struct Pending : hc::Attached {
  struct Operation {
    // Lane by lane, where the result goes and what it is.
    std::vector<float*> to[32];
    std::vector<float> result[32];
    std::function<uint64_t()> operands;
    uint64_t seen;
    int line;
  };
  std::map<int, std::vector<std::vector<Operation>>> of_warp;
  std::map<int, std::map<float*, float>> values;
  // Descriptors by the number of the call, to compare the four warps of a warpgroup.
  std::map<std::pair<int, int64_t>, std::pair<uint64_t, uint64_t>> calls;
  std::map<int, int64_t> number;
  std::map<int, bool> fenced;
};
Pending& pending() { return hc::attached_to_block<Pending>(*hc::self->block); }
int warp_number() { return hc::self->linear / 32; }

struct Lane {
  const Wgmma* call;
  float* const* d;
};

void check_warpgroup(Pending& p, const Wgmma& call, int line) {
  const int warp = warp_number();
  if (warp / 4 * 128 + 128 > static_cast<int>(hc::block_size.x * hc::block_size.y * hc::block_size.z))
    fail("wgmma: a warpgroup of fewer than four warps", line);
  const auto key = std::pair{warp / 4, p.number[warp]++};
  const auto [found, first] = p.calls.try_emplace(key, call.a_registers ? 0 : call.a, call.b);
  if (!first && found->second != std::pair{call.a_registers ? 0 : call.a, call.b})
    fail("wgmma: the warps of a warpgroup have different descriptors", line);
}

uint64_t hash_of(const std::vector<float>& a, const std::vector<float>& b) {
  uint64_t h = 1469598103934665603u;
  for (const auto* v : {&a, &b})
    for (float x : *v) h = (h ^ std::bit_cast<uint32_t>(x)) * 1099511628211u;
  return h;
}

// Rows 16 * warp.. of A (16 x depth) and all of B (depth x n, by column).
void read_operands(const Wgmma& call, int warp, Lane* const* lanes, std::vector<float>& a, std::vector<float>& b,
                   int line) {
  const bool wide = call.type == Operand::tf32;
  const int es = wide ? 4 : 2, depth = 32 / es;
  a.resize(static_cast<size_t>(16 * depth));
  b.resize(static_cast<size_t>(call.n * depth));
  if (call.a_registers) {
    for (int lane = 0; lanes && lane < 32; ++lane)
      for (int i = 0; i < (wide ? 4 : 8); ++i) {
        const int g = lane >> 2, t = lane & 3;
        const int row = wide ? g + 8 * (i & 1) : g + 8 * ((i >> 1) & 1);
        const int col = wide ? t + 4 * (i >> 1) : 2 * t + (i & 1) + 8 * (i >> 2);
        const uint32_t* r = lanes[lane]->call->a_registers;
        a[static_cast<size_t>(row * depth + col)] =
            operand_value(call.type, wide ? r[i] : r[i / 2] >> 16 * (i % 2) & 0xffff);
      }
  } else {
    const Descriptor left(call.a, line);
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < depth; ++k)
        a[static_cast<size_t>(row * depth + k)] =
            operand_value(call.type, element(left, 16 * (warp % 4) + row, k, es, call.mn_major_a, line));
  }
  const Descriptor right(call.b, line);
  for (int col = 0; col < call.n; ++col)
    for (int k = 0; k < depth; ++k)
      b[static_cast<size_t>(col * depth + k)] =
          operand_value(call.type, element(right, col, k, es, call.mn_major_b, line));
}

void issue(Pending& p, int warp, Lane* const (&lanes)[32], int line) {
  const Wgmma call = *lanes[0]->call;
  const int depth = call.type == Operand::tf32 ? 8 : 16;
  std::vector<float> a, b;
  read_operands(call, warp, lanes, a, b, line);
  Pending::Operation op;
  op.line = line;
  op.seen = hash_of(a, b);
  if (!call.a_registers)
    op.operands = [call, warp, line] {
      std::vector<float> left, right;
      read_operands(call, warp, nullptr, left, right, line);
      return hash_of(left, right);
    };
  const float sign = static_cast<float>(call.sign_a * call.sign_b);
  auto& values = p.values[warp];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < call.n / 2; ++i) {
      float* const d = lanes[lane]->d[i];
      const auto before = values.find(d);
      float sum = !call.accumulate ? 0.0f : before != values.end() ? before->second : *d;
      const int row = (lane >> 2) + 8 * ((i >> 1) & 1), col = 8 * (i >> 2) + 2 * (lane & 3) + (i & 1);
      for (int k = 0; k < depth; ++k)
        sum += sign * a[static_cast<size_t>(row * depth + k)] * b[static_cast<size_t>(col * depth + k)];
      op.to[lane].push_back(d);
      op.result[lane].push_back(sum);
      values[d] = sum;
      *d = std::numeric_limits<float>::quiet_NaN();
    }
  auto& groups = p.of_warp[warp];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(std::move(op));
}
}  // namespace

void set_registers(int line) {
  int nothing = 0;
  whole_warp("setmaxnreg", nothing, [](int* const(&)[32]) {}, line);
}
void wgmma_fence(int line) {
  int nothing = 0;
  whole_warp("wgmma.fence", nothing, [](int* const(&)[32]) { pending().fenced[warp_number()] = true; }, line);
}
void wgmma(const Wgmma& call, float* const* d, int line) {
  Lane mine{&call, d};
  whole_warp(
      "wgmma.mma_async", mine,
      [&](Lane* const(&lanes)[32]) {
        Pending& p = pending();
        for (const Lane* l : lanes)
          if (l->call->b != call.b || (!call.a_registers && l->call->a != call.a) ||
              l->call->accumulate != call.accumulate)
            fail("wgmma: lanes of a warp have different descriptors", line);
        if (!p.fenced[warp_number()]) fail("wgmma: no wgmma.fence before it", line);
        check_warpgroup(p, call, line);
        issue(p, warp_number(), lanes, line);
      },
      line);
}
void wgmma_commit(int line) {
  int nothing = 0;
  whole_warp("wgmma.commit_group", nothing, [](int* const(&)[32]) { pending().of_warp[warp_number()].emplace_back(); },
             line);
}
void wgmma_wait(int left, int line) {
  int nothing = 0;
  whole_warp(
      "wgmma.wait_group", nothing,
      [&](int* const(&)[32]) {
        Pending& p = pending();
        auto& groups = p.of_warp[warp_number()];
        while (static_cast<int>(groups.size()) - 1 > left) {
          for (auto& op : groups.front()) {
            if (op.operands && op.operands() != op.seen)
              fail("wgmma: its operands in shared memory changed before anybody waited for it", op.line);
            for (int lane = 0; lane < 32; ++lane)
              for (size_t i = 0; i < op.to[lane].size(); ++i) *op.to[lane][i] = op.result[lane][i];
          }
          groups.erase(groups.begin());
        }
        if (!std::all_of(groups.begin(), groups.end(), [](const auto& g) { return g.empty(); })) return;
        p.fenced[warp_number()] = false;
        p.values[warp_number()].clear();
      },
      line);
}

}  // namespace ptx
