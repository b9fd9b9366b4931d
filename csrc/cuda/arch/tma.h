// TMA (sm_90): one thread starts the copy of a box of a tensor between global and shared memory; it runs on its own.
//
// A box is named by the coordinates of its first element, dimension 0 (the innermost) first. It lies in shared memory
// with dimension 0 fastest and no gaps, then swizzled by address; shared addresses are multiples of swizzle_period. A
// load may begin at negative coordinates and hang over: what is outside becomes zero. Its bytes (box_bytes, all of
// them) count on an mbarrier. Stores drop what hangs over, and finish in groups of their thread.
#pragma once

#include <cstdint>

#include "cuda/arch/mbarrier.h"
#include "cuda/tensor_map.h"

namespace atrousops::cuda::arch {

#ifdef ATROUSOPS_HOST_CUDA
namespace host {

struct Box {
  TensorMapArguments map;
  uint32_t shared;
  unsigned char* first;
  int at[5] = {};

  Box(const TensorMap& m, uint32_t shared, const int* coordinates, const char* what)
      : map(m.arguments()), shared(shared) {
    std::copy_n(coordinates, map.rank, at);
    if (const auto period = static_cast<uint32_t>(swizzle_period(map.swizzle)); shared % period != 0)
      host_cuda::fail(std::string(what) + ": with this swizzle shared memory has to be aligned to " +
                      std::to_string(period) + " bytes");
    first = host_cuda::cluster_bytes(shared, bytes(), what);
  }
  size_t bytes() const { return static_cast<size_t>(box_bytes(map)); }

  // f(the place in shared memory, the element in global memory or null if there is none) for every element.
  template <class F>
  void for_each(const F& f) const {
    const auto size = static_cast<uint32_t>(bytes_of(map.type));
    const uint32_t count = static_cast<uint32_t>(bytes()) / size;
    for (uint32_t n = 0; n < count; ++n) {
      int64_t offset = 0;
      bool inside = true;
      for (int d = 0, rest = static_cast<int>(n); d < map.rank; ++d) {
        const int64_t x = at[d] + int64_t{rest % box_extent(map, d)} * (d == 0 ? 1 : map.element_strides[d]);
        rest /= box_extent(map, d);
        inside = inside && x >= 0 && x < map.sizes[d];
        offset += x * (d == 0 ? size : map.strides[d]);
      }
      auto* global = static_cast<unsigned char*>(const_cast<void*>(map.address)) + (inside ? offset : 0);
      f(first + (swizzled(shared + n * size, map.swizzle) - shared), inside ? global : nullptr);
    }
  }
};

inline void round_to_tf32(unsigned char* word) {
  uint32_t v;
  std::memcpy(&v, word, 4);
  if ((v & 0x7f800000u) != 0x7f800000u) v = (v + 0xfffu + (v >> 13 & 1)) & 0xffffe000u;
  std::memcpy(word, &v, 4);
}

inline void load(const TensorMap& map, const int* at, uint32_t shared, uint32_t barrier) {
  const char* const what = "cp.async.bulk.tensor";
  const Box box(map, shared, at, what);
  std::memset(box.first, 0xff, box.bytes());
  host_cuda::written_by_async_proxy(box.first, box.bytes());
  const auto land = [box] {
    const auto size = static_cast<size_t>(bytes_of(box.map.type));
    box.for_each([&](unsigned char* to, const unsigned char* from) {
      if (!from) {
        std::memset(to, 0, size);
        return;
      }
      std::memcpy(to, from, size);
      if (box.map.type == TensorMapType::tf32) round_to_tf32(to);
    });
    host_cuda::written_by_async_proxy(box.first, box.bytes());
  };
  complete(barrier, static_cast<int64_t>(box.bytes()), land, what);
}

// Of one thread: groups in order, the last one still open. Global memory is written when a group is waited for, or at
// the end; until it was read, shared memory must stay as it is.
class BulkStores : public host_cuda::Attached {
 public:
  void store(const TensorMap& map, const int* at, uint32_t shared) {
    const char* const what = "cp.async.bulk.tensor to global memory";
    const Box box(map, shared, at, what);
    for (int d = 0; d < box.map.rank; ++d) {
      if (at[d] < 0) host_cuda::fail(std::string(what) + ": a box that is stored begins at no negative coordinate");
      if (box.map.element_strides[d] != 1) host_cuda::fail(std::string(what) + ": element strides are for loads");
    }
    host_cuda::check_published(box.first, box.bytes(), what);
    groups_.back().push_back({box, {box.first, box.first + box.bytes()}});
  }
  void commit() { groups_.emplace_back(); }
  void wait(size_t pending, bool written) {
    for (size_t i = 0; i + pending + 1 < groups_.size(); ++i)
      for (Store& s : groups_[i]) read(s);
    if (!written) return;
    for (; groups_.size() > pending + 1; groups_.pop_front())
      for (const Store& s : groups_.front()) write(s);
  }
  void end() override {
    for (const auto& group : groups_)
      for (const Store& s : group) {
        if (!s.was_read) host_cuda::fail("the block ended before its bulk stores had read its shared memory");
        write(s);
      }
  }

 private:
  struct Store {
    Box box;
    std::vector<unsigned char> bytes;
    bool was_read = false;
  };
  static void read(Store& s) {
    if (!s.was_read && std::memcmp(s.bytes.data(), s.box.first, s.bytes.size()) != 0)
      host_cuda::fail("cp.async.bulk.wait_group: shared memory was overwritten before the store had read it");
    s.was_read = true;
  }
  static void write(const Store& s) {
    const auto size = static_cast<size_t>(bytes_of(s.box.map.type));
    s.box.for_each([&](const unsigned char* from, unsigned char* to) {
      if (to) std::memcpy(to, s.bytes.data() + (from - s.box.first), size);
    });
  }
  std::deque<std::vector<Store>> groups_{1};
};

}  // namespace host
#endif

// This thread's earlier stores to shared memory become visible to TMA stores and to wgmma of all threads that pass a
// barrier after it.
__device__ __forceinline__ void fence_proxy_async() {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"fence.proxy.async">();
  host_cuda::publish_to_async_proxy();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Fetches the map itself; once, by one thread, at a kernel's beginning.
__device__ __forceinline__ void tma_prefetch(const TensorMap* map) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"prefetch.tensormap">();
#else
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

#define ATROUSOPS_AT_2 "r"(at[0]), "r"(at[1])
#define ATROUSOPS_AT_3 ATROUSOPS_AT_2, "r"(at[2])
#define ATROUSOPS_AT_4 ATROUSOPS_AT_3, "r"(at[3])
#define ATROUSOPS_AT_5 ATROUSOPS_AT_4, "r"(at[4])

// The box at these coordinates to `shared`, its bytes to the current phase of b.
template <int kRank>
__device__ __forceinline__ void tma_load(void* shared, const TensorMap* map, const int (&at)[kRank], Mbarrier* b) {
  static_assert(kRank >= 2 && kRank <= 5);
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"cp.async.bulk.tensor.load", kRank>();
  host::load(*map, at, shared_address(shared), shared_address(b));
#else
#define ATROUSOPS_LOAD(RANK, AT)                                                            \
  if constexpr (kRank == RANK)                                                              \
  asm volatile("cp.async.bulk.tensor." #RANK                                                \
               "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {" AT \
               "}], [%2];" ::"r"(shared_address(shared)),                                   \
               "l"(map), "r"(shared_address(b)), ATROUSOPS_AT_##RANK                        \
               : "memory")
  ATROUSOPS_LOAD(2, "%3, %4");
  ATROUSOPS_LOAD(3, "%3, %4, %5");
  ATROUSOPS_LOAD(4, "%3, %4, %5, %6");
  ATROUSOPS_LOAD(5, "%3, %4, %5, %6, %7");
#undef ATROUSOPS_LOAD
#endif
}

// The same to each block of the cluster whose rank is a bit of `blocks`: to the same place in its shared memory, and on
// its own barrier at b's place.
template <int kRank>
__device__ __forceinline__ void tma_load_multicast(void* shared, const TensorMap* map, const int (&at)[kRank],
                                                   Mbarrier* b, uint16_t blocks) {
  static_assert(kRank >= 2 && kRank <= 5);
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"cp.async.bulk.tensor.multicast", kRank>();
  for (int rank = 0; rank < 16; ++rank)
    if (blocks >> rank & 1)
      host::load(*map, at, host_cuda::cluster_address(shared_address(shared), rank),
                 host_cuda::cluster_address(shared_address(b), rank));
#else
#define ATROUSOPS_LOAD(RANK, AT)                                                                               \
  if constexpr (kRank == RANK)                                                                                 \
  asm volatile("cp.async.bulk.tensor." #RANK                                                                   \
               "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {" AT \
               "}], [%2], %3;" ::"r"(shared_address(shared)),                                                  \
               "l"(map), "r"(shared_address(b)), "h"(blocks), ATROUSOPS_AT_##RANK                              \
               : "memory")
  ATROUSOPS_LOAD(2, "%4, %5");
  ATROUSOPS_LOAD(3, "%4, %5, %6");
  ATROUSOPS_LOAD(4, "%4, %5, %6, %7");
  ATROUSOPS_LOAD(5, "%4, %5, %6, %7, %8");
#undef ATROUSOPS_LOAD
#endif
}

// Shared memory to the box at these coordinates, none of which is negative. Writers call fence_proxy_async, then comes
// a barrier, then one thread stores, commits, and waits.
template <int kRank>
__device__ __forceinline__ void tma_store(const TensorMap* map, const int (&at)[kRank], const void* shared) {
  static_assert(kRank >= 2 && kRank <= 5);
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"cp.async.bulk.tensor.store", kRank>();
  host_cuda::attached<host::BulkStores>().store(*map, at, shared_address(shared));
#else
#define ATROUSOPS_STORE(RANK, AT)                                                                                     \
  if constexpr (kRank == RANK)                                                                                        \
  asm volatile("cp.async.bulk.tensor." #RANK "d.global.shared::cta.tile.bulk_group [%0, {" AT "}], [%1];" ::"l"(map), \
               "r"(shared_address(shared)), ATROUSOPS_AT_##RANK                                                       \
               : "memory")
  ATROUSOPS_STORE(2, "%2, %3");
  ATROUSOPS_STORE(3, "%2, %3, %4");
  ATROUSOPS_STORE(4, "%2, %3, %4, %5");
  ATROUSOPS_STORE(5, "%2, %3, %4, %5, %6");
#undef ATROUSOPS_STORE
#endif
}
#undef ATROUSOPS_AT_2
#undef ATROUSOPS_AT_3
#undef ATROUSOPS_AT_4
#undef ATROUSOPS_AT_5

__device__ __forceinline__ void tma_store_commit() {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"cp.async.bulk.commit_group">();
  host_cuda::attached<host::BulkStores>().commit();
#else
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

// All groups of this thread but the kPending youngest have read their shared memory; before the block ends, all must.
template <int kPending>
__device__ __forceinline__ void tma_store_wait_read() {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"cp.async.bulk.wait_group.read", kPending>();
  host_cuda::attached<host::BulkStores>().wait(kPending, false);
#else
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
#endif
}

// The same, and this thread sees what they wrote.
template <int kPending>
__device__ __forceinline__ void tma_store_wait() {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"cp.async.bulk.wait_group", kPending>();
  host_cuda::attached<host::BulkStores>().wait(kPending, true);
#else
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace atrousops::cuda::arch
