// The shared memory of the block that runs now: filled with NaN when a block begins, red zones around every array.
#pragma once

#include <cstddef>
#include <cstdint>

namespace atrousops::host_cuda {

// Empties shared memory for a block with so many dynamic bytes.
void begin_shared(int64_t dynamic_bytes);
// Throws if something was written into a red zone.
void check_shared();

// The static array that `tag` stands for.
void* static_shared(const void* tag, size_t bytes, size_t align);

// The part of dynamic memory that the `call`-th request of a sequence gets, `offset` bytes into it on a device.
void* dynamic_shared(int call, size_t offset, size_t bytes, size_t align);

// The 32-bit address that instructions know a byte of shared memory by, and back. Throws for other memory.
uint32_t shared_address(const void* p);
void* shared_pointer(uint32_t address);

}  // namespace atrousops::host_cuda
