// What the parts of the machine share: the block's memory, and the report of faults.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "host_cuda/engine.h"
#include "ptx.h"

namespace ptx {
namespace hc = atrousops::host_cuda;

[[noreturn]] void fail(const std::string& what, int line);

// Shared memory of the block of a rank. Bytes are poison (NaN, -1) until they are written.
struct Window {
  std::vector<char> bytes;
  // A word that generic stores changed and that no proxy fence covers: its writer's number + 1, and how many barriers
  // of the block the writer had passed. 0: the async proxy sees what is there.
  struct Mark {
    uint32_t writer, epoch;
  };
  std::vector<Mark> unfenced;
};
Window& window(int rank);

constexpr uint32_t kFirst = 1024;
constexpr int kRankShift = 24;
inline int rank_of(uint64_t address) {
  return address >> kRankShift ? static_cast<int>(address >> kRankShift) - 1 : hc::self->block->rank;
}
inline uint32_t own_address(uint64_t address) { return static_cast<uint32_t>(address & ((1u << kRankShift) - 1)); }

// Lanes have no order between two accesses to memory: others may go on here.
void run_apart();
// A generic store to shared memory, which the async proxy does not see before a fence.
void mark_written(int rank, uint32_t address, uint32_t bytes);
// Bytes of the block that a cluster address belongs to.
char* cluster_bytes(uint64_t address, uint32_t bytes, uint32_t align, const char* what, int line);
// The same for the async proxy: a read throws where a generic store was not fenced; a write needs no fence.
const char* async_read(uint64_t address, uint32_t bytes, const char* what, int line);
char* async_write(uint64_t address, uint32_t bytes, const char* what, int line);

float operand_value(Operand type, uint32_t bits);

// 16-byte pieces of a 128-byte line change places by address bits 7 and up; the mask is 1, 3 or 7.
inline uint32_t exchanged(uint32_t address, uint32_t mask) { return address ^ ((address >> 7) & mask) << 4; }

// The mbarriers that this thread has initialised.
void fence_proxy_of_mbarriers();

// Whether bytes lie in one of the kernel's parameters.
bool is_parameter(uint64_t address, uint64_t bytes);
char* checked_global(uint64_t address, uint64_t bytes, const char* what, int line);

// Of a thread: how many barriers of the block it has passed.
struct Passed : hc::Attached {
  uint32_t barriers = 0;
};

hc::Location here(int line);

// The 32 lanes of a warp hand in what they have and f runs once over all; PTX calls such instructions .aligned.
template <class Mine, class F>
void whole_warp(const char* what, Mine& mine, const F& f, int line) {
  if (hc::self->warp->alive != ~0u) fail(std::string(what) + " needs all 32 lanes of the warp", line);
  hc::warp_together(what, ~0u, mine, f, here(line));
}

}  // namespace ptx
