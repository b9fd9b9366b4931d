// wgmma.h's second body: operands read through descriptors as the PTX manual's canonical layouts have it, sums that are
// NaN (whole numbers -1) until they were waited for.
#pragma once

#include <bit>

#include "cuda/arch/mma.h"
#include "cuda/tensor_map.h"

namespace atrousops::cuda::arch::host {

// A descriptor's fields, in bytes.
struct Operand {
  uint32_t start, leading, stride;
  Swizzle swizzle;
  explicit Operand(uint64_t bits)
      : start(static_cast<uint32_t>(bits & 0x3fff) << 4),
        leading(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4),
        swizzle(bits >> 62 == 0 ? Swizzle::none : static_cast<Swizzle>(4 - (bits >> 62))) {
    if (bits & 0x3fffc000c000c000u)
      host_cuda::fail("wgmma: a descriptor has bits where there is no field, or a base offset");
    // Starting in the midst of a pattern asks for a base offset, which no source shows in use.
    const auto span = static_cast<uint32_t>(swizzle_span(swizzle));
    if (swizzle != Swizzle::none && start % static_cast<uint32_t>(swizzle_period(swizzle)) >= span)
      host_cuda::fail("wgmma: an operand begins in the midst of a swizzle pattern, not at its first line");
  }
  // The 16 bytes with row `mn` and the `chunk`-th part of K.
  uint32_t k_major(uint32_t mn, uint32_t chunk) const {
    if (swizzle == Swizzle::none) return start + mn % 8 * 16 + mn / 8 * stride + chunk * leading;
    return swizzled(start + mn % 8 * swizzle_span(swizzle) + mn / 8 * stride + chunk * 16, swizzle);
  }
  // The 16 bytes with the `chunk`-th 8 elements along MN of row k.
  uint32_t mn_major(uint32_t chunk, uint32_t k) const {
    if (swizzle == Swizzle::none) return start + chunk * stride + k % 8 * 16 + k / 8 * leading;
    const uint32_t span = static_cast<uint32_t>(swizzle_span(swizzle)), across = span / 16;
    return swizzled(start + chunk % across * 16 + chunk / across * leading + k % 8 * span + k / 8 * stride, swizzle);
  }
};

// What a product has read, to see whether it is still there when the product must be done.
struct Reads {
  struct Chunk {
    const unsigned char* at;
    unsigned char bytes[16];
  };
  std::vector<Chunk> chunks;
  const unsigned char* read(uint32_t address) {
    const unsigned char* at = host_cuda::cluster_bytes(address, 16, "wgmma");
    host_cuda::check_published(at, 16, "wgmma");
    chunks.push_back({at, {}});
    std::memcpy(chunks.back().bytes, at, 16);
    return chunks.back().bytes;
  }
  void check() const {
    for (const Chunk& c : chunks)
      if (std::memcmp(c.at, c.bytes, 16) != 0)
        host_cuda::fail("wgmma.wait_group: an operand was overwritten while a product was under way");
  }
};

template <class T>
double element(const unsigned char* bytes, int i) {
  if constexpr (sizeof(T) == 1) {
    T value;
    std::memcpy(&value, bytes + i, 1);
    return static_cast<float>(value);
  }
  uint32_t words[4];
  std::memcpy(words, bytes, 16);
  return value_of<T>(words, i);
}

// Rows [first, first + count) along MN by 32 bytes of K.
template <class T>
std::vector<double> read_operand(const Operand& o, bool k_major, int first, int count, Reads& reads) {
  constexpr int kEach = 16 / sizeof(T), kDepth = 2 * kEach;
  std::vector<double> values(static_cast<size_t>(count * kDepth));
  const auto at = [&](int mn, int k) -> double& { return values[static_cast<size_t>(mn * kDepth + k)]; };
  if (k_major) {
    for (int mn = 0; mn < count; ++mn)
      for (int chunk = 0; chunk < 2; ++chunk) {
        const auto* bytes = reads.read(o.k_major(static_cast<uint32_t>(first + mn), static_cast<uint32_t>(chunk)));
        for (int i = 0; i < kEach; ++i) at(mn, chunk * kEach + i) = element<T>(bytes, i);
      }
  } else {
    for (int k = 0; k < kDepth; ++k)
      for (int chunk = 0; chunk < count / kEach; ++chunk) {
        const auto* bytes =
            reads.read(o.mn_major(static_cast<uint32_t>(first / kEach + chunk), static_cast<uint32_t>(k)));
        for (int i = 0; i < kEach; ++i) at(chunk * kEach + i, k) = element<T>(bytes, i);
      }
  }
  return values;
}

// A thread's part of a product; sums are words of 32 bits.
struct Call {
  void* sums;
  const uint32_t* a_registers;
  uint64_t a, b;
  bool add, a_k_major, b_k_major;
};

// Products of one warp, 16 rows of its warpgroup's, in groups, the last one still open.
class WarpProducts {
 public:
  struct Product {
    Reads reads;
    void* sums[32];
    std::vector<uint32_t> results;  // of 32 lanes
    size_t each() const { return results.size() / 32; }
  };

  void fence() { fenced_ = true; }
  void commit() { groups_.emplace_back(); }
  void wait(size_t pending) {
    for (; groups_.size() > pending + 1; groups_.pop_front())
      for (size_t i = 0; i < groups_.front().size(); ++i) finish(groups_.front()[i]);
  }
  // The results so far on the same sums, if they are under way.
  const Product* under_way(const void* sums) const {
    for (auto group = groups_.rbegin(); group != groups_.rend(); ++group)
      for (auto p = group->rbegin(); p != group->rend(); ++p)
        if (p->sums[0] == sums) return &*p;
    return nullptr;
  }
  void add(Product product) {
    if (!under_way(product.sums[0]) && !fenced_)
      host_cuda::fail("wgmma: no wgmma.fence since these sums were last waited for");
    for (void* sums : product.sums) std::memset(sums, 0xff, 4 * product.each());
    groups_.back().push_back(std::move(product));
  }
  bool idle() const { return groups_.size() == 1 && groups_.back().empty(); }

 private:
  void finish(Product& p) {
    p.reads.check();
    fenced_ = false;
    const std::vector<unsigned char> poison(4 * p.each(), 0xff);
    for (const void* sums : p.sums)
      if (std::memcmp(sums, poison.data(), poison.size()) != 0)
        host_cuda::fail("wgmma.wait_group: a sum was written while its product was under way");
    if (under_way(p.sums[0]) != &p) return;
    for (size_t lane = 0; lane < 32; ++lane)
      std::memcpy(p.sums[lane], p.results.data() + lane * p.each(), 4 * p.each());
  }
  std::deque<std::vector<Product>> groups_{1};
  bool fenced_ = false;
};

// Of a block: every warp's products, and for each warpgroup what its warps have called, which must be the same.
class Warpgroups : public host_cuda::Attached {
 public:
  WarpProducts& products(const host_cuda::Warp* warp) { return products_[warp]; }
  void called(const Call& c, int n) {
    const int warp = host_cuda::self->linear / 32;
    if (static_cast<unsigned>(warp / 4 * 4 + 4) * 32 >
        host_cuda::block_size.x * host_cuda::block_size.y * host_cuda::block_size.z)
      host_cuda::fail("wgmma: the block has no fourth warp to this warpgroup");
    const Shape shape{c.a, c.b, n, c.add, c.a_k_major, c.b_k_major};
    auto& [shapes, calls] = calls_[warp / 4];
    size_t& mine = calls[warp % 4];
    if (mine == shapes.size()) shapes.push_back(shape);
    if (shapes[mine++] != shape) host_cuda::fail("wgmma: the warps of a warpgroup call with different operands");
  }
  void end() override {
    for (const auto& [warpgroup, c] : calls_)
      for (const size_t calls : c.calls)
        if (calls != c.shapes.size()) host_cuda::fail("wgmma: not all four warps of a warpgroup made the same calls");
    for (const auto& [warp, p] : products_)
      if (!p.idle()) host_cuda::fail("wgmma: the block ended with products under way that nobody waited for");
  }

 private:
  struct Shape {
    uint64_t a, b;
    int n;
    bool add, a_k_major, b_k_major;
    bool operator==(const Shape&) const = default;
  };
  struct Calls {
    std::vector<Shape> shapes;
    size_t calls[4] = {};
  };
  std::map<const host_cuda::Warp*, WarpProducts> products_;
  std::map<int, Calls> calls_;
};

inline Warpgroups& warpgroups() { return host_cuda::attached_to_block<Warpgroups>(*host_cuda::self->block); }

template <class F>
void with_products(const char* what, const F& f) {
  host_cuda::full_warp_together(what, [&] { f(warpgroups().products(host_cuda::self->warp)); });
}

template <class T>
std::vector<double> rows_in_registers(Call* const (&lanes)[32]) {
  constexpr bool kWide = sizeof(T) == 2;
  constexpr int kDepth = 32 / sizeof(T);
  std::vector<double> values(16 * kDepth);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < (kWide ? 8 : 4); ++i) {
      const int row = lane / 4 + 8 * (kWide ? i / 2 % 2 : i % 2);
      const int column = kWide ? 2 * (lane % 4) + i % 2 + 8 * (i / 4) : lane % 4 + 4 * (i / 2);
      values[static_cast<size_t>(row * kDepth + column)] = value_of<T>(lanes[lane]->a_registers, i);
    }
  return values;
}

// The sum as a word: a whole number wraps around; fp32 is cut off. Of e4m3, Hopper is reported to keep some 14 bits of
// what it adds (DeepSeek-V3 Technical Report, arXiv 2412.19437, section 3.3.2): here, of the largest summand's.
template <class T>
uint32_t word_of(double sum, double largest) {
  if constexpr (std::is_same_v<T, int8_t>) return static_cast<uint32_t>(static_cast<int64_t>(sum));
  if constexpr (std::is_same_v<T, Float8_e4m3fn>) {
    const double last = largest > 0 && std::isfinite(largest) ? std::ldexp(1.0, std::ilogb(largest) - 13) : 0;
    if (last > 0 && std::isfinite(sum)) sum = std::trunc(sum / last) * last;
  }
  return std::bit_cast<uint32_t>(cut(sum));
}
template <class T>
double sum_of(const void* sums, size_t i) {
  std::conditional_t<std::is_same_v<T, int8_t>, int32_t, float> value;
  std::memcpy(&value, static_cast<const char*>(sums) + 4 * i, 4);
  return value;
}

template <class T, int kN>
void multiply(Call mine) {
  host_cuda::require_full_warp("wgmma");
  host_cuda::warp_together("wgmma", ~0u, mine, [](Call* const(&lanes)[32]) {
    constexpr int kDepth = 32 / sizeof(T);
    const Call& c = *lanes[0];
    for (const Call* l : lanes)
      if (l->a != c.a || l->b != c.b || l->add != c.add) host_cuda::fail("wgmma: lanes differ in operands");
    warpgroups().called(c, kN);
    WarpProducts& products = warpgroups().products(host_cuda::self->warp);
    WarpProducts::Product p;
    const int first = host_cuda::self->linear / 32 % 4 * 16;
    const auto a =
        c.a_registers ? rows_in_registers<T>(lanes) : read_operand<T>(Operand(c.a), c.a_k_major, first, 16, p.reads);
    const auto b = read_operand<T>(Operand(c.b), c.b_k_major, 0, kN, p.reads);
    const WarpProducts::Product* before = products.under_way(c.sums);
    p.results.resize(32 * kN / 2);
    for (int lane = 0; lane < 32; ++lane) {
      p.sums[lane] = lanes[lane]->sums;
      for (int i = 0; i < kN / 2; ++i) {
        const auto n = static_cast<size_t>(lane * kN / 2 + i);
        const int row = lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
        double sum = !c.add   ? 0
                     : before ? sum_of<T>(before->results.data(), n)
                              : sum_of<T>(p.sums[lane], static_cast<size_t>(i));
        double largest = std::fabs(sum);
        for (int k = 0; k < kDepth; ++k) {
          const double product = a[static_cast<size_t>(row * kDepth + k)] * b[static_cast<size_t>(column * kDepth + k)];
          sum += product;
          largest = std::max(largest, std::fabs(product));
        }
        p.results[n] = word_of<T>(sum, largest);
      }
    }
    products.add(std::move(p));
  });
}

}  // namespace atrousops::cuda::arch::host
