// N elements that travel in one load or store of up to 16 bytes.
#pragma once

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
  *reinterpret_cast<Pack<T, N>*>(p) = v;
}

// Whether a pointer, or a distance in elements, lets packs of N elements through.
template <class T, int N>
inline bool packs_at(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * N) == 0;
}

// f.template operator()<N>() with the widest N of kPack<T>, 1 for which `fits` packs of kPack<T>.
template <class T, class F>
void dispatch_pack(bool fits, const F& f) {
  if (fits)
    f.template operator()<kPack<T>>();
  else
    f.template operator()<1>();
}

}  // namespace atrousops::cuda
