// The devices that can be pretended, as data.
#pragma once

#include <cstddef>

namespace fake_cuda {

struct DeviceKind {
  const char* key;   // what $ATROUSOPS_EMULATED_GPU calls it
  const char* name;  // ends in EMULATED
  int major, minor;
  int multiprocessors, threads_per_multiprocessor, blocks_per_multiprocessor;
  int shared_per_block, shared_per_multiprocessor;  // with the attribute; bytes
  int l2_bytes;
  size_t memory_bytes;
};

inline constexpr size_t kGiB = size_t{1} << 30;
// The CUDA programming guide's table of compute capabilities, and the data sheets.
inline constexpr DeviceKind kDeviceKinds[] = {
    {"H100", "H100 EMULATED", 9, 0, 132, 2048, 32, 227 << 10, 228 << 10, 50 << 20, 80 * kGiB},
    // A slice of one: problems of few tiles fill it, and take the kernels that large ones take on a whole one.
    {"H100-1g", "H100 1g.10gb EMULATED", 9, 0, 16, 2048, 32, 227 << 10, 228 << 10, 25 << 18, 10 * kGiB},
    {"A100", "A100 EMULATED", 8, 0, 108, 2048, 32, 163 << 10, 164 << 10, 40 << 20, 40 * kGiB},
    {"RTX4090", "RTX 4090 EMULATED", 8, 9, 128, 1536, 24, 99 << 10, 100 << 10, 72 << 20, 24 * kGiB},
    {"RTX3090", "RTX 3090 EMULATED", 8, 6, 82, 1536, 16, 99 << 10, 100 << 10, 6 << 20, 24 * kGiB},
    // Fits what a slice of an H100 does, with less shared memory; and the largest one that has no more.
    {"RTX3050Laptop", "RTX 3050 Laptop EMULATED", 8, 6, 16, 1536, 16, 99 << 10, 100 << 10, 2 << 20, 4 * kGiB},
    {"RTX5090", "RTX 5090 EMULATED", 12, 0, 170, 1536, 24, 99 << 10, 100 << 10, 96 << 20, 32 * kGiB},
    {"T4", "T4 EMULATED", 7, 5, 40, 1024, 16, 64 << 10, 64 << 10, 4 << 20, 16 * kGiB},
    {"B200", "B200 EMULATED", 10, 0, 148, 2048, 32, 227 << 10, 228 << 10, 126 << 20, 180 * kGiB},
};

inline constexpr int kWarp = 32, kBlockThreads = 1024, kBlockZ = 64, kGridYZ = 65535, kMostBlocks = 32;
// Of a multiprocessor, and of a block on all of these; a warp gets so many at a time, all from one quarter.
inline constexpr int kRegisters = 65536, kRegisterUnit = 256, kQuarters = 4;
inline constexpr int kSharedByDefault = 48 << 10, kPortableCluster = 8, kLargestCluster = 16;
// Of a kernel's parameters: before driver 12.1, and since.
inline constexpr size_t kParameterBytes = 4096, kLargeParameterBytes = 32764;
inline constexpr int kLargeParametersDriver = 12010;

// The devices of this process: those that $ATROUSOPS_EMULATED_GPU names, separated by commas, or an H100 and a slice of
// one.
int device_count();
const DeviceKind& device_kind(int device);
// $ATROUSOPS_EMULATED_DRIVER, or 13000.
int driver_version();

}  // namespace fake_cuda
