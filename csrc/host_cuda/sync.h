// Barriers, shuffles, votes and reductions.
#pragma once

#include <cstring>
#include <type_traits>

#include "host_cuda/engine.h"

#define threadIdx (::atrousops::host_cuda::self->index)
#define blockIdx (::atrousops::host_cuda::block_index)
#define blockDim (::atrousops::host_cuda::block_size)
#define gridDim (::atrousops::host_cuda::grid_size)
inline constexpr int warpSize = 32;

inline void __syncthreads(atrousops::host_cuda::Location where = atrousops::host_cuda::Location::current()) {
  atrousops::host_cuda::barrier_sync(0, 0, "__syncthreads", where);
}
inline int __syncthreads_count(int p,
                               atrousops::host_cuda::Location where = atrousops::host_cuda::Location::current()) {
  return static_cast<int>(atrousops::host_cuda::barrier_sync(0, 0, "__syncthreads_count", where, p != 0));
}
inline int __syncthreads_or(int p, atrousops::host_cuda::Location where = atrousops::host_cuda::Location::current()) {
  return atrousops::host_cuda::barrier_sync(0, 0, "__syncthreads_or", where, p != 0) != 0;
}
inline int __syncthreads_and(int p, atrousops::host_cuda::Location where = atrousops::host_cuda::Location::current()) {
  return atrousops::host_cuda::barrier_sync(0, 0, "__syncthreads_and", where, p == 0) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       atrousops::host_cuda::Location where = atrousops::host_cuda::Location::current()) {
  int nothing = 0;
  atrousops::host_cuda::warp_together("__syncwarp", mask, nothing, [](int* const(&)[32]) {}, where);
}

// Memory is in order here: one fiber runs at a time.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

namespace atrousops::host_cuda {

template <class T>
struct Exchange {
  T value, result;
  int source;
};

// Every lane gets the value of lane `source`; what an absent lane would give is poison.
template <class T>
T shuffle(const char* what, unsigned mask, T value, int source, Location where) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2));
  Exchange<T> mine{value, value, source};
  warp_together(
      what, mask, mine,
      [](Exchange<T>* const(&lanes)[32]) {
        for (Exchange<T>* lane : lanes) {
          if (!lane) continue;
          if (const Exchange<T>* from = lanes[lane->source])
            lane->result = from->value;
          else
            std::memset(static_cast<void*>(&lane->result), 0xff, sizeof(T));
        }
      },
      where);
  return mine.result;
}

// All lanes get f over the values of those present.
template <class T, class R, class F>
R reduce(const char* what, unsigned mask, T value, R start, const F& f, Location where) {
  struct Vote {
    T value;
    R result;
  } mine{value, start};
  warp_together(
      what, mask, mine,
      [&](Vote* const(&lanes)[32]) {
        R all = start;
        for (int i = 0; i < 32; ++i)
          if (lanes[i]) all = f(all, lanes[i]->value, i);
        for (Vote* lane : lanes)
          if (lane) lane->result = all;
      },
      where);
  return mine.result;
}

}  // namespace atrousops::host_cuda

template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32,
              atrousops::host_cuda::Location where = atrousops::host_cuda::Location::current()) {
  const int lane = atrousops::host_cuda::self->lane;
  return atrousops::host_cuda::shuffle("__shfl_sync", mask, v, (lane & -width) | (source & (width - 1)), where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32,
                 atrousops::host_cuda::Location where = atrousops::host_cuda::Location::current()) {
  const int lane = atrousops::host_cuda::self->lane, from = lane - static_cast<int>(delta);
  return atrousops::host_cuda::shuffle("__shfl_up_sync", mask, v, from < (lane & -width) ? lane : from, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32,
                   atrousops::host_cuda::Location where = atrousops::host_cuda::Location::current()) {
  const int lane = atrousops::host_cuda::self->lane, from = lane + static_cast<int>(delta);
  return atrousops::host_cuda::shuffle("__shfl_down_sync", mask, v, from >= (lane & -width) + width ? lane : from,
                                       where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32,
                  atrousops::host_cuda::Location where = atrousops::host_cuda::Location::current()) {
  const int lane = atrousops::host_cuda::self->lane, from = lane ^ bits;
  return atrousops::host_cuda::shuffle("__shfl_xor_sync", mask, v, from >= (lane & -width) + width ? lane : from,
                                       where);
}

inline unsigned __ballot_sync(unsigned mask, int p,
                              atrousops::host_cuda::Location where = atrousops::host_cuda::Location::current()) {
  return atrousops::host_cuda::reduce(
      "__ballot_sync", mask, p, 0u, [](unsigned all, int v, int i) { return all | (v ? 1u << i : 0u); }, where);
}
inline int __any_sync(unsigned mask, int p,
                      atrousops::host_cuda::Location where = atrousops::host_cuda::Location::current()) {
  return atrousops::host_cuda::reduce(
      "__any_sync", mask, p, 0, [](int all, int v, int) { return int(all || v); }, where);
}
inline int __all_sync(unsigned mask, int p,
                      atrousops::host_cuda::Location where = atrousops::host_cuda::Location::current()) {
  return atrousops::host_cuda::reduce(
      "__all_sync", mask, p, 1, [](int all, int v, int) { return int(all && v); }, where);
}

#define ATROUSOPS_WARP_REDUCTION(NAME, T, START, RESULT)                                                              \
  inline T NAME(unsigned mask, T value,                                                                               \
                atrousops::host_cuda::Location where = atrousops::host_cuda::Location::current()) {                   \
    return atrousops::host_cuda::reduce(#NAME, mask, value, T(START), [](T all, T v, int) { return RESULT; }, where); \
  }
ATROUSOPS_WARP_REDUCTION(__reduce_add_sync, unsigned, 0, all + v)
ATROUSOPS_WARP_REDUCTION(__reduce_add_sync, int, 0, all + v)
ATROUSOPS_WARP_REDUCTION(__reduce_min_sync, unsigned, 0xffffffffu, v < all ? v : all)
ATROUSOPS_WARP_REDUCTION(__reduce_min_sync, int, 0x7fffffff, v < all ? v : all)
ATROUSOPS_WARP_REDUCTION(__reduce_max_sync, unsigned, 0, v > all ? v : all)
ATROUSOPS_WARP_REDUCTION(__reduce_max_sync, int, -0x7fffffff - 1, v > all ? v : all)
ATROUSOPS_WARP_REDUCTION(__reduce_and_sync, unsigned, 0xffffffffu, all& v)
ATROUSOPS_WARP_REDUCTION(__reduce_or_sync, unsigned, 0, all | v)
ATROUSOPS_WARP_REDUCTION(__reduce_xor_sync, unsigned, 0, all ^ v)
#undef ATROUSOPS_WARP_REDUCTION
