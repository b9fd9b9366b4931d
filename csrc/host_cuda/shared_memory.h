// The shared memory of the blocks that run now: filled with NaN when a block begins, red zones around every array.
#pragma once

#include <cstddef>
#include <cstdint>

namespace atrousops::host_cuda {

// Empties shared memory for a cluster of blocks with so many dynamic bytes each.
void begin_shared(int64_t dynamic_bytes, int blocks);
// All that follows is about the block of this rank.
void select_shared(int rank);
// Throws if something was written into a red zone.
void check_shared();

// The static array that `tag` stands for.
void* static_shared(const void* tag, size_t bytes, size_t align);

// The part of dynamic memory that the `call`-th request of a sequence gets, `offset` bytes into it on a device.
void* dynamic_shared(int call, size_t offset, size_t bytes, size_t align);

// The 32-bit address that instructions know a byte of shared memory by, and back. Throws for other memory.
uint32_t shared_address(const void* p);
void* shared_pointer(uint32_t address);

// Addresses of the cluster: of another block's memory as mapa makes them, or an own address.
constexpr int kRankShift = 24;
inline uint32_t cluster_address(uint32_t own, int rank) {
  return (own & ((1u << kRankShift) - 1)) | static_cast<uint32_t>(rank + 1) << kRankShift;
}
// The block that an address belongs to.
int rank_of(uint32_t address);
// So many bytes inside one array of the block that the address belongs to; throws, naming `what`, where they are not.
unsigned char* cluster_bytes(uint32_t address, size_t bytes, const char* what);

// What the async proxy (TMA, wgmma) sees: ordinary stores reach it by fence.proxy.async only.
void publish_to_async_proxy();
// Throws, naming `what`, if these bytes were stored and no fence published them.
void check_published(const unsigned char* bytes, size_t count, const char* what);
// Bytes that the async proxy itself has written.
void written_by_async_proxy(const unsigned char* bytes, size_t count);

}  // namespace atrousops::host_cuda
