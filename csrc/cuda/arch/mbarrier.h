// mbarrier (sm_90): a barrier in shared memory that counts arrivals and the bytes of asynchronous copies.
//
// A phase ends when `count` arrivals have come and as many bytes have landed as were expected; the next begins at once
// with the same count. A wait names a phase by its parity and returns when that phase has ended: on a fresh barrier
// parity 0 waits for the first phase, and parity 1 returns at once, as if a phase before it had ended. Nobody may fall
// two phases behind. Less than 1 MiB lands in a phase. On a device a wait has a limit (wait_limit.h).
#pragma once

#include <cstdint>

#include "cuda/arch/wait_limit.h"
#include "cuda/platform.h"
#include "cuda/shared.h"

namespace atrousops::cuda::arch {

struct alignas(8) Mbarrier {
  uint64_t opaque;
};

#ifdef ATROUSOPS_HOST_CUDA
namespace host {

constexpr int64_t kMostArrivals = (1 << 20) - 1, kMostBytes = (1 << 20) - 1;

// Grows with everything that happens to any barrier.
inline int64_t changes = 0;

struct MbarrierState {
  int64_t expected, pending, bytes = 0, phase = 0;
  const host_cuda::Thread* made_by;
  bool fenced = false;
  int waiting = 0;
  // Copies land when a thread has seen that their phase ended.
  struct Landing {
    int64_t phase;
    std::function<void()> land;
  };
  std::vector<Landing> landings;
};

// Those of a block, by shared address. In the shared memory itself stands a word that tells whether it was overwritten.
class Mbarriers : public host_cuda::Attached {
 public:
  static Mbarriers& of(uint32_t address) {
    return host_cuda::attached_to_block<Mbarriers>(
        host_cuda::cluster()[static_cast<size_t>(host_cuda::rank_of(address))]);
  }
  static MbarrierState& at(uint32_t address, const char* what) {
    const auto* word = host_cuda::cluster_bytes(address, 8, what);
    auto& all = of(address).all_;
    const auto found = all.find(own(address));
    if (found == all.end()) host_cuda::fail(std::string(what) + ": this mbarrier is not initialised");
    const uint64_t right = mark(address);
    if (std::memcmp(word, &right, 8) != 0) host_cuda::fail(std::string(what) + ": somebody wrote over this mbarrier");
    return found->second;
  }
  static void init(uint32_t address, unsigned count) {
    auto* word = host_cuda::cluster_bytes(address, 8, "mbarrier.init");
    if (address % 8 != 0) host_cuda::fail("mbarrier.init: the address is not a multiple of 8");
    if (count < 1 || count > kMostArrivals)
      host_cuda::fail("mbarrier.init: a count of " + std::to_string(count) + "; 1 to 1048575 will do");
    auto& all = of(address).all_;
    if (all.count(own(address))) host_cuda::fail("mbarrier.init: this mbarrier is in use; mbarrier.inval ends that");
    all[own(address)] = {.expected = count, .pending = count, .made_by = host_cuda::self, .landings = {}};
    const uint64_t right = mark(address);
    std::memcpy(word, &right, 8);
    host_cuda::written_by_async_proxy(word, 8);
  }
  static void invalidate(uint32_t address) {
    const MbarrierState& b = at(address, "mbarrier.inval");
    if (b.waiting > 0) host_cuda::fail("mbarrier.inval: somebody waits at this mbarrier");
    if (!b.landings.empty()) host_cuda::fail("mbarrier.inval: copies are under way that nobody waited for");
    std::memset(host_cuda::cluster_bytes(address, 8, "mbarrier.inval"), 0xff, 8);
    of(address).all_.erase(own(address));
  }
  void fence() {
    for (auto& [address, b] : all_)
      if (b.made_by == host_cuda::self) b.fenced = true;
  }
  std::string state() const override {
    std::string text;
    for (const auto& [address, b] : all_)
      text += (text.empty() ? "" : "; ") + name(address) + " is in phase " + std::to_string(b.phase) + ", " +
              std::to_string(b.pending) + " of " + std::to_string(b.expected) + " arrivals and " +
              std::to_string(b.bytes) + " bytes to come";
    return text;
  }
  void end() override {
    for (const auto& [address, b] : all_)
      if (!b.landings.empty())
        host_cuda::fail(name(address) + ": the block ended with copies under way that nobody waited for");
  }
  static std::string name(uint32_t address) { return "mbarrier " + std::to_string(own(address)); }

 private:
  static uint32_t own(uint32_t address) { return address & ((1u << host_cuda::kRankShift) - 1); }
  static uint64_t mark(uint32_t address) { return 0x6d62617272696572u ^ own(address); }
  std::map<uint32_t, MbarrierState> all_;
};

inline void end_phase_if_done(MbarrierState& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  ++b.phase;
  b.pending = b.expected;
}

inline void change_bytes(MbarrierState& b, int64_t bytes, const char* what) {
  ++changes;
  b.bytes += bytes;
  if (b.bytes > kMostBytes || b.bytes < -kMostBytes)
    host_cuda::fail(std::string(what) + ": " + std::to_string(b.bytes) +
                    " bytes to come, and an mbarrier counts to 1048575");
}

inline void arrive(uint32_t address, unsigned count, const char* what) {
  MbarrierState& b = Mbarriers::at(address, what);
  if (host_cuda::rank_of(address) != host_cuda::self->block->rank && !b.fenced)
    host_cuda::fail(std::string(what) + ": no fence.mbarrier_init after that block's mbarrier.init");
  if (count < 1 || count > b.pending)
    host_cuda::fail(std::string(what) + ": " + std::to_string(count) + " arrivals at an mbarrier of " +
                    std::to_string(b.expected) + " whose phase waits for " + std::to_string(b.pending));
  ++changes;
  b.pending -= count;
  end_phase_if_done(b);
}

inline void expect(uint32_t address, unsigned bytes, const char* what) {
  change_bytes(Mbarriers::at(address, what), bytes, what);
}

// A copy of so many bytes, done, in the sense of the barrier; `land` brings the data.
inline void complete(uint32_t address, int64_t bytes, std::function<void()> land, const char* what) {
  MbarrierState& b = Mbarriers::at(address, what);
  if (!b.fenced) host_cuda::fail(std::string(what) + ": no fence.mbarrier_init after the mbarrier.init");
  b.landings.push_back({b.phase, std::move(land)});
  change_bytes(b, -bytes, what);
  end_phase_if_done(b);
}

inline bool has_ended(const MbarrierState& b, unsigned parity) { return (b.phase & 1) != parity; }

// The waiting thread has seen the phase end.
inline void observe(MbarrierState& b) {
  std::vector<MbarrierState::Landing> later;
  for (auto& l : b.landings) l.phase < b.phase ? l.land() : later.push_back(std::move(l));
  b.landings = std::move(later);
}

inline void check_wait(uint32_t address, unsigned parity) {
  if (parity > 1) host_cuda::fail("mbarrier.try_wait: a parity is 0 or 1");
  if (host_cuda::rank_of(address) != host_cuda::self->block->rank)
    host_cuda::fail("mbarrier.try_wait: a block waits at its own barriers only");
}

inline void wait_for(uint32_t address, MbarrierState& b, unsigned parity, host_cuda::Location where,
                     const std::function<bool()>& condition) {
  const std::function<std::string()> describe = [&] {
    return "for parity " + std::to_string(parity) + " of " + Mbarriers::name(address);
  };
  ++b.waiting;
  host_cuda::wait_until(condition, "mbarrier.try_wait", where, &describe);
  --b.waiting;
}

inline void wait(uint32_t address, unsigned parity, host_cuda::Location where) {
  check_wait(address, parity);
  MbarrierState& b = Mbarriers::at(address, "mbarrier.try_wait");
  wait_for(address, b, parity, where, [&] { return has_ended(b, parity); });
  observe(b);
}

// Of a thread: how much had changed at its last failed try.
struct Tried : host_cuda::Attached {
  int64_t changes = -1;
};

// May come back early, and so it does unless nothing has changed since it did: code that does not try again is found,
// and one that tries without end is a deadlock.
inline bool try_wait(uint32_t address, unsigned parity, host_cuda::Location where) {
  check_wait(address, parity);
  MbarrierState& b = Mbarriers::at(address, "mbarrier.try_wait");
  int64_t& tried = host_cuda::attached<Tried>().changes;
  wait_for(address, b, parity, where, [&] { return tried != changes || has_ended(b, parity); });
  tried = changes;
  if (!has_ended(b, parity)) return false;
  observe(b);
  return true;
}

}  // namespace host
#endif

#ifdef ATROUSOPS_HOST_CUDA
#define ATROUSOPS_HERE , host_cuda::Location where = host_cuda::Location::current()
#else
#define ATROUSOPS_HERE
#endif

// One thread initialises, then mbarrier_fence_init, then a barrier of the block or of the cluster; then anybody may use
// it.
__device__ __forceinline__ void mbarrier_init(Mbarrier* b, unsigned count) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mbarrier.init">();
  host::Mbarriers::init(shared_address(b), count);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
#endif
}

// Before its memory serves another purpose.
__device__ __forceinline__ void mbarrier_invalidate(Mbarrier* b) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mbarrier.inval">();
  host::Mbarriers::invalidate(shared_address(b));
#else
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(b)) : "memory");
#endif
}

// Makes what this thread initialised known to other blocks and to the TMA unit. The manual has that unit see barriers
// as threads do, its examples fence the async proxy as well: here are both.
__device__ __forceinline__ void mbarrier_fence_init() {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"fence.mbarrier_init">();
  host_cuda::attached_to_block<host::Mbarriers>(*host_cuda::self->block).fence();
#else
  asm volatile("fence.mbarrier_init.release.cluster;\n fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier* b, unsigned count = 1) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mbarrier.arrive">();
  host::arrive(shared_address(b), count, "mbarrier.arrive");
#else
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(count)
               : "memory");
#endif
}

// So many more bytes belong to this phase: all of each box that lands in this block's memory, its parts outside the
// tensor too. To be called before the copies are issued.
__device__ __forceinline__ void mbarrier_expect(Mbarrier* b, unsigned bytes) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mbarrier.expect_tx">();
  host::expect(shared_address(b), bytes, "mbarrier.expect_tx");
#else
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
#endif
}

__device__ __forceinline__ void mbarrier_arrive_expect(Mbarrier* b, unsigned bytes) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mbarrier.arrive.expect_tx">();
  host::expect(shared_address(b), bytes, "mbarrier.arrive.expect_tx");
  host::arrive(shared_address(b), 1, "mbarrier.arrive.expect_tx");
#else
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
#endif
}

// At a barrier of another block of the cluster, by its address from map_to_rank; that block waits with
// mbarrier_wait_cluster.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t remote, unsigned count = 1) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mbarrier.arrive.cluster">();
  host::arrive(remote, count, "mbarrier.arrive");
#else
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(remote), "r"(count) : "memory");
#endif
}

// The same, released in the scope of the arriving block alone: no fence of the cluster's memory comes before it.
__device__ __forceinline__ void mbarrier_arrive_cluster_cta(uint32_t remote, unsigned count = 1) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mbarrier.arrive.cluster_cta">();
  host::arrive(remote, count, "mbarrier.arrive");
#else
  asm volatile("mbarrier.arrive.release.cta.shared::cluster.b64 _, [%0], %1;" ::"r"(remote), "r"(count) : "memory");
#endif
}

__device__ __forceinline__ void mbarrier_arrive_expect_cluster(uint32_t remote, unsigned bytes) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mbarrier.arrive.expect_tx.cluster">();
  host::expect(remote, bytes, "mbarrier.arrive.expect_tx");
  host::arrive(remote, 1, "mbarrier.arrive.expect_tx");
#else
  asm volatile("mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(remote), "r"(bytes)
               : "memory");
#endif
}

// Whether the phase of this parity has ended. May wait for it a while, and may return false too early.
__device__ __forceinline__ bool mbarrier_try_wait(const Mbarrier* b, unsigned parity ATROUSOPS_HERE) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mbarrier.try_wait">();
  return host::try_wait(shared_address(b), parity, where);
#else
  uint32_t ended;
  asm volatile(
      "{.reg .pred p;\n mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;}"
      : "=r"(ended)
      : "r"(shared_address(b)), "r"(parity)
      : "memory");
  return ended != 0;
#endif
}

// Returns when the phase of this parity has ended; what its arrivals did before and its copies brought is then visible.
__device__ __forceinline__ void mbarrier_wait(const Mbarrier* b, unsigned parity ATROUSOPS_HERE) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mbarrier.wait">();
  host::wait(shared_address(b), parity, where);
#else
  WaitLimit limit;
  while (!mbarrier_try_wait(b, parity)) limit.failed();
#endif
}

// The same where arrivals came from other blocks of the cluster.
__device__ __forceinline__ void mbarrier_wait_cluster(const Mbarrier* b, unsigned parity ATROUSOPS_HERE) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mbarrier.wait.cluster">();
  host::wait(shared_address(b), parity, where);
#else
  WaitLimit limit;
  while (true) {
    uint32_t ended;
    asm volatile(
        "{.reg .pred p;\n mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        " selp.u32 %0, 1, 0, p;}"
        : "=r"(ended)
        : "r"(shared_address(b)), "r"(parity)
        : "memory");
    if (ended != 0) return;
    limit.failed();
  }
#endif
}

}  // namespace atrousops::cuda::arch
