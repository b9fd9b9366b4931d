// CUDA's names in host C++: qualifiers, dim3, vector types.
#pragma once

#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#undef __forceinline__
#undef __noinline__
#define __forceinline__ inline __attribute__((always_inline))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// Aligned as on the device.
#define ATROUSOPS_VECTOR_TYPES(T, NAME)                                         \
  struct alignas(2 * sizeof(T)) NAME##2 { T x, y; };                            \
  struct NAME##3 { T x, y, z; };                                                \
  struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) NAME##4 { T x, y, z, w; }; \
  inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                    \
  inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }            \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
ATROUSOPS_VECTOR_TYPES(float, float)
ATROUSOPS_VECTOR_TYPES(double, double)
ATROUSOPS_VECTOR_TYPES(int, int)
ATROUSOPS_VECTOR_TYPES(short, short)
ATROUSOPS_VECTOR_TYPES(unsigned short, ushort)
ATROUSOPS_VECTOR_TYPES(unsigned char, uchar)
ATROUSOPS_VECTOR_TYPES(long long, longlong)
ATROUSOPS_VECTOR_TYPES(unsigned long long, ulonglong)
#undef ATROUSOPS_VECTOR_TYPES
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
