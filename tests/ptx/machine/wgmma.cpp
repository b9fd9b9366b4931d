// wgmma, from the PTX manual's rules and tables. Nothing here is shared with csrc/cuda/arch.
#include <algorithm>
#include <functional>
#include <map>
#include <unordered_map>

#include "host_cuda/encoded_map.h"
#include "machine.h"

namespace ptx {

// wgmma. Each warp computes its 16 rows; the result is in the registers once the warp has waited for its group, and
// until then they hold NaN (whole numbers -1). Sums of e4m3 are those of fp32, though hardware is said to keep fewer bits.
namespace {
int element_size(Operand type) {
  return type == Operand::tf32 ? 4 : type == Operand::s8 || type == Operand::e4m3 ? 1 : 2;
}
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

// Elements (mn, k) of rows `first` to `first + rows` along mn as out[(mn - first) * depth + k]. Sixteen bytes lie
// together whatever the layout: along k, or along mn.
void read_rows(Operand type, const Descriptor& d, int first, int rows, int depth, bool mn_major, float* out, int line) {
  const int es = element_size(type), chunk = 16 / es;
  for (int mn = 0; mn < rows; mn += mn_major ? chunk : 1)
    for (int k = 0; k < depth; k += mn_major ? 1 : chunk) {
      const char* p = async_read(d.address(first + mn, k, es, mn_major), 16, "wgmma", line);
      for (int i = 0; i < chunk; ++i) {
        uint32_t bits = 0;
        std::memcpy(&bits, p + i * es, static_cast<size_t>(es));
        out[mn_major ? (mn + i) * depth + k : mn * depth + k + i] = operand_value(type, bits);
      }
    }
}

// What a warp has under way.
struct Pending : hc::Attached {
  struct Operation {
    // Lane by lane, where the result goes and what it is.
    std::vector<void*> to[32];
    std::vector<uint32_t> result[32];
    std::function<uint64_t()> operands;
    uint64_t seen;
    int line;
  };
  std::map<int, std::vector<std::vector<Operation>>> of_warp;
  std::map<int, std::unordered_map<void*, uint32_t>> values;
  // Descriptors by the number of the call, to compare the four warps of a warpgroup.
  std::map<std::pair<int, int64_t>, std::pair<uint64_t, uint64_t>> calls;
  std::map<int, int64_t> number;
  std::map<int, bool> fenced;
};
Pending& pending() { return hc::attached_to_block<Pending>(*hc::self->block); }
int warp_number() { return hc::self->linear / 32; }

struct Lane {
  const Wgmma* call;
  void* const* d;
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
  const int depth = 32 / element_size(call.type);
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
    read_rows(call.type, Descriptor(call.a, line), 16 * (warp % 4), 16, depth, call.mn_major_a, a.data(), line);
  }
  read_rows(call.type, Descriptor(call.b, line), 0, call.n, depth, call.mn_major_b, b.data(), line);
}

// What the word of a sum becomes by one row of A and one column of B.
uint32_t sum_of(const Wgmma& call, uint32_t before, const float* a, const float* b, int depth) {
  if (call.type == Operand::s8) {
    for (int k = 0; k < depth; ++k) before += static_cast<uint32_t>(static_cast<int32_t>(a[k] * b[k]));
    return before;
  }
  const float sign = static_cast<float>(call.sign_a * call.sign_b);
  float sum = std::bit_cast<float>(before);
  for (int k = 0; k < depth; ++k) sum += sign * a[k] * b[k];
  return std::bit_cast<uint32_t>(sum);
}

void issue(Pending& p, int warp, Lane* const (&lanes)[32], int line) {
  const Wgmma call = *lanes[0]->call;
  const int depth = 32 / element_size(call.type);
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
  auto& values = p.values[warp];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < call.n / 2; ++i) {
      void* const d = lanes[lane]->d[i];
      const auto known = values.find(d);
      uint32_t before = 0;
      if (call.accumulate) std::memcpy(&before, known != values.end() ? &known->second : d, 4);
      const int row = (lane >> 2) + 8 * ((i >> 1) & 1), col = 8 * (i >> 2) + 2 * (lane & 3) + (i & 1);
      const uint32_t sum = sum_of(call, before, &a[static_cast<size_t>(row * depth)], &b[static_cast<size_t>(col * depth)],
                                  depth);
      op.to[lane].push_back(d);
      op.result[lane].push_back(sum);
      values[d] = sum;
      std::memset(d, 0xff, 4);
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
void wgmma(const Wgmma& call, void* const* d, int line) {
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
  whole_warp(
      "wgmma.commit_group", nothing, [](int* const(&)[32]) { pending().of_warp[warp_number()].emplace_back(); }, line);
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
              for (size_t i = 0; i < op.to[lane].size(); ++i) std::memcpy(op.to[lane][i], &op.result[lane][i], 4);
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
