// What is known of the kernels that can be executed, and how to execute one.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {
struct FakeCudaDim3 {
  unsigned x, y, z;
};
// Device memory from one allocation, and where its bytes are.
struct FakeCudaBlock {
  char* begin;
  size_t bytes;
  char* memory;
};
// Runs every thread of a grid; returns 0, or another number for what a kernel did wrong, which `why` then says.
using FakeCudaExecute = int (*)(const char* name, FakeCudaDim3 grid, FakeCudaDim3 block, size_t shared,
                                unsigned cluster, void** arguments);
using FakeCudaWhy = const char* (*)();

__attribute__((visibility("default"))) void fake_cuda_set_executor(FakeCudaExecute execute, FakeCudaWhy why);
// A kernel by its mangled name: bytes of its parameters, static shared memory, most threads of a block (0: no limit of
// its own), what it has machine code or PTX for, and a thread's registers in it where they are known, as
// "80:48;90a:52;compute_80".
__attribute__((visibility("default"))) void fake_cuda_declare(const char* name, const unsigned* parameter_bytes,
                                                              int parameters, unsigned static_shared,
                                                              unsigned most_threads, const char* codes);
// A line for each declared kernel: its name, a tab, how often it was launched.
__attribute__((visibility("default"))) const char* fake_cuda_launches();
// Where a variable in global memory is on the device that a kernel runs on now, by its mangled name; or 0.
__attribute__((visibility("default"))) uint64_t fake_cuda_variable(const char* name);
// Whether bytes lie in one block of the device that a kernel runs on now, and in which. Blocks stay while it runs.
__attribute__((visibility("default"))) int fake_cuda_find_block(const void* p, size_t bytes, FakeCudaBlock* found);
}
