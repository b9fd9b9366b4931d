#include "host_cuda/shared_memory.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "host_cuda/engine.h"
#include "host_cuda/runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define ATROUSOPS_POISON(p, n) __asan_poison_memory_region(p, n)
#define ATROUSOPS_UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define ATROUSOPS_POISON(p, n)
#define ATROUSOPS_UNPOISON(p, n)
#endif

namespace atrousops::host_cuda {
namespace {

constexpr size_t kWindow = 1 << 20, kAlign = 1024, kRed = 128, kStaticLimit = 48 << 10;
// NaN in every floating type, -1 in integers; another value for what no thread may touch.
constexpr int kPoison = 0xff, kCanary = 0xa5;

struct Array {
  const void* tag;
  size_t begin, bytes;
};

struct Window {
  unsigned char* base = static_cast<unsigned char*>(std::aligned_alloc(kAlign, kWindow));
  // Arrays as the async proxy sees them.
  unsigned char* async = static_cast<unsigned char*>(std::aligned_alloc(kAlign, kWindow));
  size_t used = 0, dynamic_limit = 0, static_bytes = 0;
  std::vector<Array> statics, dynamics, placed;
  Window() { ATROUSOPS_POISON(base, kWindow); }
};
int selected = 0;
Window& window(int rank = selected) {
  static std::array<Window*, 16> all{};
  Window*& w = all.at(static_cast<size_t>(rank));
  if (!w) w = new Window;
  return *w;
}

// Room for an array behind all others, with a red zone on both sides.
size_t place(Window& w, size_t bytes, size_t align) {
  const size_t begin = (w.used + kRed + align - 1) / align * align, end = begin + bytes;
  if (end + kRed > kWindow) fail("shared memory: more arrays than the emulation has room for");
  ATROUSOPS_UNPOISON(w.base + w.used, end + kRed - w.used);
  std::memset(w.base + w.used, kCanary, begin - w.used);
  std::memset(w.base + begin, kPoison, bytes);
  std::memset(w.async + begin, kPoison, bytes);
  std::memset(w.base + end, kCanary, kRed);
  ATROUSOPS_POISON(w.base + w.used, begin - w.used);
  ATROUSOPS_POISON(w.base + end, kRed);
  w.used = end;
  w.placed.push_back({nullptr, begin, bytes});
  return begin;
}

void check_limit(const Window& w) {
  const auto limit = static_cast<size_t>(properties(0).shared_per_block);
  if (w.static_bytes + w.dynamic_limit > limit)
    fail("shared memory: " + std::to_string(w.static_bytes) + " static and " + std::to_string(w.dynamic_limit) +
         " dynamic bytes, but a block has " + std::to_string(limit));
}

}  // namespace

void begin_shared(int64_t dynamic_bytes, int blocks) {
  for (selected = blocks - 1;; --selected) {
    Window& w = window();
    ATROUSOPS_POISON(w.base, w.used);
    w.used = w.static_bytes = 0;
    w.dynamic_limit = static_cast<size_t>(dynamic_bytes);
    w.statics.clear();
    w.dynamics.clear();
    w.placed.clear();
    check_limit(w);
    if (selected == 0) break;
  }
}

void select_shared(int rank) { selected = rank; }

void check_shared() {
#if !defined(__SANITIZE_ADDRESS__)
  const Window& w = window();
  size_t at = 0;
  const auto check = [&](size_t end) {
    for (; at < end; ++at)
      if (w.base[at] != kCanary) fail("shared memory: somebody wrote outside the arrays of this block");
  };
  for (const Array& a : w.placed) {
    check(a.begin);
    at = a.begin + a.bytes;
  }
  if (!w.placed.empty()) check(at + kRed);
#endif
}

void* static_shared(const void* tag, size_t bytes, size_t align) {
  Window& w = window();
  for (const Array& a : w.statics)
    if (a.tag == tag) return w.base + a.begin;
  w.static_bytes += bytes;
  if (w.static_bytes > kStaticLimit) fail("shared memory: more than 48 KiB of static arrays");
  check_limit(w);
  const size_t begin = place(w, bytes, align);
  w.statics.push_back({tag, begin, bytes});
  return w.base + begin;
}

void* dynamic_shared(int call, size_t offset, size_t bytes, size_t align) {
  Window& w = window();
  if (offset + bytes > w.dynamic_limit)
    fail("shared memory: request " + std::to_string(call) + " ends at byte " + std::to_string(offset + bytes) +
         ", but the launch asked for " + std::to_string(w.dynamic_limit));
  const auto n = static_cast<size_t>(call);
  if (n < w.dynamics.size()) {
    if (w.dynamics[n].bytes != bytes) fail("shared memory: threads of a block made different requests");
    return w.base + w.dynamics[n].begin;
  }
  const size_t begin = place(w, bytes, align);
  w.dynamics.push_back({nullptr, begin, bytes});
  return w.base + begin;
}

uint32_t shared_address(const void* p) {
  const Window& w = window();
  const auto* byte = static_cast<const unsigned char*>(p);
  if (byte < w.base || byte > w.base + w.used) fail("this pointer does not lead into shared memory");
  return static_cast<uint32_t>(byte - w.base);
}

void* shared_pointer(uint32_t address) {
  const Window& w = window();
  if (address > w.used) fail("shared address " + std::to_string(address) + " lies behind all arrays");
  return w.base + address;
}

int rank_of(uint32_t address) {
  const auto rank = static_cast<int>(address >> kRankShift);
  return rank == 0 ? self->block->rank : rank - 1;
}

unsigned char* cluster_bytes(uint32_t address, size_t bytes, const char* what) {
  const int rank = rank_of(address);
  const auto& blocks = cluster();
  if (rank < 0 || rank >= static_cast<int>(blocks.size()))
    fail(std::string(what) + ": the cluster has no block of rank " + std::to_string(rank));
  if (blocks[static_cast<size_t>(rank)].alive == 0)
    fail(std::string(what) + ": the block of rank " + std::to_string(rank) + " has ended");
  const Window& w = window(rank);
  const size_t begin = address & ((1u << kRankShift) - 1);
  for (const Array& a : w.placed)
    if (begin >= a.begin && begin + bytes <= a.begin + a.bytes) return w.base + begin;
  fail(std::string(what) + ": " + std::to_string(bytes) + " bytes at shared address " + std::to_string(begin) +
       " are not within one array of the block of rank " + std::to_string(rank));
}

void publish_to_async_proxy() {
  for (size_t rank = 0; rank < cluster().size(); ++rank) {
    const Window& w = window(static_cast<int>(rank));
    for (const Array& a : w.placed) std::memcpy(w.async + a.begin, w.base + a.begin, a.bytes);
  }
}

// The block whose memory this is.
static Window& owner(const unsigned char* p) {
  for (size_t rank = 0; rank < cluster().size(); ++rank) {
    Window& w = window(static_cast<int>(rank));
    if (p >= w.base && p < w.base + kWindow) return w;
  }
  fail("this pointer does not lead into shared memory");
}

void check_published(const unsigned char* bytes, size_t count, const char* what) {
  const Window& w = owner(bytes);
  if (std::memcmp(bytes, w.async + (bytes - w.base), count) != 0)
    fail(std::string(what) + ": shared memory that it reads was stored to, and no fence.proxy.async followed");
}

void written_by_async_proxy(const unsigned char* bytes, size_t count) {
  const Window& w = owner(bytes);
  std::memcpy(w.async + (bytes - w.base), bytes, count);
}

}  // namespace atrousops::host_cuda
