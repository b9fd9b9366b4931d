// N elements that travel in one load or store of up to 16 bytes.
#pragma once

#include <cstring>

#include "cuda/arch/store.h"
#include "cuda/platform.h"

namespace atrousops::cuda {

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  static_assert(sizeof(T) * N <= 16 && (N & (N - 1)) == 0);
  T at[N];

  __host__ __device__ T& operator[](int i) { return at[i]; }
  __host__ __device__ const T& operator[](int i) const { return at[i]; }
};

// Elements of T in 16 bytes.
template <class T>
inline constexpr int kPack = static_cast<int>(16 / sizeof(T));

template <class T, int N>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <class T, int N>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& v) {
  if constexpr (sizeof(v) == sizeof(uint4)) {
    uint4 bits;
    memcpy(&bits, &v, sizeof(bits));
    arch::store_16(p, bits);
  } else {
    *reinterpret_cast<Pack<T, N>*>(p) = v;
  }
}

// N elements in as many packs as 16 bytes demand.
template <class T, int N>
struct Packs {
  static constexpr int kEach = N < kPack<T> ? N : kPack<T>;
  Pack<T, kEach> pack[N / kEach];

  __host__ __device__ T& operator[](int i) { return pack[i / kEach][i % kEach]; }
  __host__ __device__ const T& operator[](int i) const { return pack[i / kEach][i % kEach]; }
};
template <class T, int N>
__device__ __forceinline__ Packs<T, N> load_packs(const T* p) {
  return *reinterpret_cast<const Packs<T, N>*>(p);
}
template <class T, int N>
__device__ __forceinline__ void store_packs(T* p, const Packs<T, N>& v) {
#pragma unroll
  for (int i = 0; i < N / Packs<T, N>::kEach; ++i) store_pack(p + i * Packs<T, N>::kEach, v.pack[i]);
}

// Whether a pointer lets packs of N elements through.
template <int N, class T>
bool packs_at(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Packs<T, N>) == 0;
}

}  // namespace atrousops::cuda
