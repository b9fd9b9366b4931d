#include "host_cuda/shared_memory.h"

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
// NaN in every floating type, -1 in integers; another value for what nobody may touch.
constexpr int kPoison = 0xff, kCanary = 0xa5;

struct Array {
  const void* tag;
  size_t begin, bytes;
};

struct Window {
  unsigned char* base = static_cast<unsigned char*>(std::aligned_alloc(kAlign, kWindow));
  size_t used = 0, dynamic_limit = 0, static_bytes = 0;
  std::vector<Array> statics, dynamics, placed;
  Window() { ATROUSOPS_POISON(base, kWindow); }
};
Window& window() {
  static Window* const w = new Window;
  return *w;
}

// Room for an array behind all others, with a red zone on both sides.
size_t place(Window& w, size_t bytes, size_t align) {
  const size_t begin = (w.used + kRed + align - 1) / align * align, end = begin + bytes;
  if (end + kRed > kWindow) fail("shared memory: more arrays than the emulation has room for");
  ATROUSOPS_UNPOISON(w.base + w.used, end + kRed - w.used);
  std::memset(w.base + w.used, kCanary, begin - w.used);
  std::memset(w.base + begin, kPoison, bytes);
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

void begin_shared(int64_t dynamic_bytes) {
  Window& w = window();
  ATROUSOPS_POISON(w.base, w.used);
  w.used = w.static_bytes = 0;
  w.dynamic_limit = static_cast<size_t>(dynamic_bytes);
  w.statics.clear();
  w.dynamics.clear();
  w.placed.clear();
  check_limit(w);
}

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

}  // namespace atrousops::host_cuda
