// What translated PTX is compiled against: the arithmetic of instructions that touch registers only, and the functions
// of the machine (libptx_machine.so) that run the others.
//
// A translated kernel is a shared library with `void ptx_<mangled name>(void* const* args)`, where args[i] points to
// parameter i, and a KernelEntry that it hands to ptx_add when it is loaded. To run it:
//   ptx_execute(mangled name, grid, block, dynamic shared bytes, cluster width along x, args)
// runs every thread of the grid and returns 0, 98 for a kernel that nobody has added (ptx_set_resolver may add it on
// demand), or 719 for what a kernel did wrong; ptx_error() says what, naming the kernel, block, thread and PTX line.
// Global memory is host memory. Tensor maps have the format of csrc/host_cuda/encoded_map.h.
#pragma once

#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#define PTX_API __attribute__((visibility("default")))

struct KernelEntry {
  const char* name;
  void (*run)(void* const* args);
  // Shared memory: static arrays end at `static_end`, dynamic memory begins at `dynamic`. The first byte is 1024.
  unsigned static_end, dynamic;
  int params;
  const unsigned* param_bytes;
  unsigned max_threads;
  const char* file;
  // Whether it has instructions of the async proxy, so that stores to shared memory are followed to their fences.
  bool async_proxy;
};
struct Dim3 {
  unsigned x, y, z;
};
// Memory from one allocation, and where its bytes are.
struct MemoryBlock {
  char* begin;
  size_t bytes;
  char* memory;
};
using FindBlock = int (*)(const void* p, size_t bytes, MemoryBlock* found);
using Resolver = int (*)(const char* name);
using Variable = uint64_t (*)(const char* name);

extern "C" {
PTX_API int ptx_add(const KernelEntry* kernel);
PTX_API int ptx_execute(const char* name, Dim3 grid, Dim3 block, size_t shared, unsigned cluster, void** args);
PTX_API const char* ptx_error();
// Called with the name of a kernel that is not there; returns whether it has added it.
PTX_API void ptx_set_resolver(Resolver resolver);
// Finds the block of device memory that bytes lie in, or returns 0; without it, whatever is mapped into the process is
// device memory. Blocks stay as they are while a kernel runs.
PTX_API void ptx_set_memory(FindBlock find);
// Gives the address of a variable in global memory, 0 for one that it does not know.
PTX_API void ptx_set_variables(Variable variable);
// Order of threads and blocks: 0 is ascending. Mode 1: lanes of a warp run apart between memory instructions. Mode 2:
// a warp goes on for as long as it can before another one runs.
PTX_API void ptx_set_order(uint64_t seed, int mode);
}

namespace ptx {

template <class A, class B>
inline A as(B v) {
  if constexpr (std::is_same_v<A, B>) {
    return v;
  } else if constexpr (std::is_same_v<A, bool>) {
    return v != 0;
  } else if constexpr (sizeof(A) == sizeof(B) && !std::is_same_v<B, bool>) {
    return std::bit_cast<A>(v);
  } else {
    static_assert(std::is_integral_v<A> && std::is_integral_v<B>);
    return static_cast<A>(v);
  }
}
template <class R, class V>
inline void set(R& r, V v) {
  if constexpr (sizeof(R) == sizeof(V)) {
    r = std::bit_cast<R>(v);
  } else {
    static_assert(std::is_integral_v<R> && std::is_integral_v<V>);
    r = static_cast<R>(v);
  }
}
template <class T>
inline T load(const char* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
inline void store(char* p, T v) {
  std::memcpy(p, &v, sizeof v);
}

// Integers. Shifts by more than the width give 0 or the sign; division by zero gives all ones.
template <class T>
inline T shl(T v, uint32_t n) {
  return n >= 8 * sizeof(T) ? T(0) : static_cast<T>(v << n);
}
template <class T>
inline T shr(T v, uint32_t n) {
  if (n < 8 * sizeof(T)) return static_cast<T>(v >> n);
  return std::is_signed_v<T> ? static_cast<T>(v >> (8 * sizeof(T) - 1)) : T(0);
}
template <class T>
inline T div(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    return a / b;
  } else {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(std::make_unsigned_t<T>(0) - a);
    return static_cast<T>(a / b);
  }
}
template <class T>
inline T rem(T a, T b) {
  if (b == 0) return a;
  return std::is_signed_v<T> && b == static_cast<T>(-1) ? T(0) : static_cast<T>(a % b);
}
template <class T>
inline T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmin(a, b);
  return a < b ? a : b;
}
template <class T>
inline T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmax(a, b);
  return a > b ? a : b;
}
template <class T>
inline T mul_hi(T a, T b) {
  using Wide = std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                                  std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
  return static_cast<T>(static_cast<Wide>(a) * b >> 8 * sizeof(T));
}
template <class T>
inline T bfi(T field, T into, uint32_t position, uint32_t length) {
  position &= 255;
  length &= 255;
  for (uint32_t i = 0; i < length && position + i < 8 * sizeof(T); ++i)
    into = (into & ~(T(1) << (position + i))) | (field >> i & 1) << (position + i);
  return into;
}
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = selector >> 4 * i, byte = static_cast<uint32_t>(bytes >> 8 * (s & 7)) & 255;
    result |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return result;
}
inline uint32_t bmsk_clamp(uint32_t begin, uint32_t width) {
  const uint64_t ones = width >= 32 ? 0xffffffffu : (1ull << width) - 1;
  return begin >= 32 ? 0 : static_cast<uint32_t>(ones << begin);
}
inline uint32_t brev(uint32_t v) {
  uint32_t r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1) << (31 - i);
  return r;
}

// Floating point.
template <class T, class F>
inline T to_int(F v) {
  if (v != v) return sizeof(F) == 8 || sizeof(T) == 8 ? std::numeric_limits<T>::min() : T(0);
  if (v <= static_cast<F>(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
  if (v >= static_cast<F>(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
  return static_cast<T>(v);
}
inline float half_value(uint16_t b) { return static_cast<float>(std::bit_cast<_Float16>(b)); }
inline uint16_t to_f16(float v) { return v != v ? 0x7fff : std::bit_cast<uint16_t>(static_cast<_Float16>(v)); }
inline float bf16_value(uint16_t b) { return std::bit_cast<float>(uint32_t{b} << 16); }
inline uint16_t to_bf16(float v) {
  if (v != v) return 0x7fff;
  const uint32_t u = std::bit_cast<uint32_t>(v);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
// Two of 16 bits in a word; .relu clamps what is negative to 0, and NaN stays NaN.
inline uint32_t to_bf16x2(float high, float low) { return uint32_t{to_bf16(high)} << 16 | to_bf16(low); }
inline uint32_t to_f16x2(float high, float low) { return uint32_t{to_f16(high)} << 16 | to_f16(low); }
inline float relu(float v) { return v > 0 || v != v ? v : 0.0f; }
// To the nearest, ties away from zero.
inline uint32_t to_tf32(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  if (v != v) return 0x7fffffff;
  return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & 0xffffe000u;
}
template <class T>
inline T saturate(T v) {
  return v > 0 ? (v < 1 ? v : T(1)) : T(0);
}
inline float flushed(float v) { return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0f, v) : v; }
template <class T, class F>
inline T rounded(int mode, const F& f) {
  const int before = std::fegetround();
  std::fesetround(mode);
  volatile T result = f();
  std::fesetround(before);
  return result;
}
template <class T>
inline T add_rz(T a, T b) {
  volatile T x = a, y = b;
  return rounded<T>(FE_TOWARDZERO, [&] { return x + y; });
}
template <class T>
inline T fma_rm(T a, T b, T c) {
  volatile T x = a, y = b, z = c;
  return rounded<T>(FE_DOWNWARD, [&] { return std::fma(T(x), T(y), T(z)); });
}

// The machine. `line`: of the PTX file, for the report of a fault.
PTX_API uint32_t sreg_tid_x();
PTX_API uint32_t sreg_tid_y();
PTX_API uint32_t sreg_tid_z();
PTX_API uint32_t sreg_ntid_x();
PTX_API uint32_t sreg_ntid_y();
PTX_API uint32_t sreg_ntid_z();
PTX_API uint32_t sreg_ctaid_x();
PTX_API uint32_t sreg_ctaid_y();
PTX_API uint32_t sreg_ctaid_z();
PTX_API uint32_t sreg_nctaid_x();
PTX_API uint32_t sreg_nctaid_y();
PTX_API uint32_t sreg_nctaid_z();
PTX_API uint32_t sreg_laneid();
PTX_API uint32_t sreg_cluster_ctarank();
PTX_API uint32_t sreg_cluster_nctarank();
// Time stands still: nobody gives up waiting, and a wait without end is found as a deadlock.
inline uint32_t sreg_globaltimer_hi() { return 1; }
inline uint32_t sreg_lanemask_le() { return ~0u >> (31 - sreg_laneid()); }
inline uint32_t sreg_lanemask_ge() { return ~0u << sreg_laneid(); }
inline uint32_t sreg_lanemask_lt() { return (1u << sreg_laneid()) - 1; }

PTX_API char* shared_load(uint64_t address, uint32_t bytes, int line);
PTX_API char* shared_store(uint64_t address, uint32_t bytes, int line);
PTX_API char* cluster_load(uint64_t address, uint32_t bytes, int line);
PTX_API char* cluster_store(uint64_t address, uint32_t bytes, int line);
PTX_API uint64_t variable(const char* name);
PTX_API char* global_at(uint64_t address, uint32_t bytes, int line);
PTX_API void let_others_run();

PTX_API int64_t barrier(int id, int threads, bool value, int line);
PTX_API void sync_warp(uint32_t mask, int line);
enum class Shuffle { idx, up, down, bfly };
PTX_API std::pair<uint32_t, bool> shuffle(Shuffle kind, uint32_t value, uint32_t b, uint32_t c, uint32_t mask,
                                          int line);
PTX_API uint32_t ballot(bool value, uint32_t mask, int line);
PTX_API bool vote_all(bool value, uint32_t mask, int line);
PTX_API bool vote_any(bool value, uint32_t mask, int line);
PTX_API uint32_t reduce_add(uint32_t value, uint32_t mask, int line);
PTX_API bool elect(uint32_t mask, int line);

PTX_API void cp_async(uint64_t to, uint64_t from, int bytes, int source_bytes, int line);
PTX_API void cp_async_commit();
PTX_API void cp_async_wait(int pending);

enum class Operand { f16, bf16, tf32, s8, e4m3 };
PTX_API void ldmatrix(uint32_t (&q)[4], uint64_t row, int count, bool transposed, int line);
PTX_API void stmatrix(const uint32_t (&q)[4], uint64_t row, int line);
PTX_API void mma(Operand type, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line);
PTX_API void mma(Operand type, int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line);

PTX_API void cluster_arrive(int line);
PTX_API void cluster_wait(int line);
[[noreturn]] PTX_API void trap(int line);
PTX_API uint32_t mapa(uint32_t address, uint32_t rank, int line);
PTX_API void mbarrier_init(uint64_t address, uint32_t count, int line);
PTX_API void mbarrier_inval(uint64_t address, int line);
PTX_API void mbarrier_arrive(uint64_t address, uint32_t count, int line);
PTX_API void mbarrier_expect(uint64_t address, uint32_t bytes, int line);
PTX_API void store_async(uint64_t to, const uint32_t (&v)[4], uint64_t barrier, int line);
PTX_API bool mbarrier_try_wait(uint64_t address, uint32_t parity, int line);
PTX_API void fence_mbarrier_init(int line);
PTX_API void fence_proxy_async(int line);
PTX_API void tma_load(int rank, uint64_t to, uint64_t map, const int32_t* at, uint64_t barrier, uint32_t blocks,
                      int line);
PTX_API void set_registers(int line);
PTX_API void wgmma_fence(int line);
PTX_API void wgmma_commit(int line);
PTX_API void wgmma_wait(int pending, int line);
struct Wgmma {
  Operand type;
  int n;
  bool accumulate;
  int sign_a, sign_b;
  bool mn_major_a, mn_major_b;
  // Operand A: a descriptor, or registers.
  uint64_t a, b;
  const uint32_t* a_registers;
};
// d: words of 32 bits, int32 of s8 and else fp32.
PTX_API void wgmma(const Wgmma& call, void* const* d, int line);

}  // namespace ptx
