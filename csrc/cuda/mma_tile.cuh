// What tensor-core kernels share: operands in shared memory, their fragments, and the products of a warp.
#pragma once

#include <cstring>

#include "cuda/arch/ldmatrix.h"
#include "cuda/arch/mma.h"
#include "cuda/platform.h"

namespace atrousops::cuda {

inline constexpr int kChunk = 16;      // bytes that move at once
inline constexpr int kStepBytes = 32;  // of the reduction in one mma, for every element type
inline constexpr int kMmaRows = 16, kMmaColumns = 8;

template <class T>
inline constexpr int kChunkOf = kChunk / static_cast<int>(sizeof(T));

__device__ __forceinline__ int lane_id() { return threadIdx.x % 32; }

// kExtent rows of A (or columns of B) by kDepth of the reduction. kAlong: the reduction is contiguous, a line is a row
// of A or column of B; otherwise a line is one step of the reduction. Chunks of a line trade places so that no eight
// lanes of a fragment load, nor of a copy, meet in a bank; words of 32 bits that lie across go one by one to their
// lanes, and want another order than ldmatrix.
template <class T, int kExtent, int kDepth, bool kAlong>
struct SharedOperand {
  static constexpr int kLines = kAlong ? kExtent : kDepth;
  static constexpr int kPitch = (kAlong ? kDepth : kExtent) * static_cast<int>(sizeof(T));
  static constexpr int kChunks = kPitch / kChunk;  // of a line
  static constexpr int kBytes = kLines * kPitch;
  static constexpr int kSteps = kDepth * static_cast<int>(sizeof(T)) / kStepBytes;
  static constexpr bool kByWord = !kAlong && sizeof(T) == 4;
  static_assert(kChunks >= 4 && (kChunks & (kChunks - 1)) == 0 && (!kByWord || kChunks >= 8));

  static __device__ __forceinline__ int offset(int line, int chunk) {
    const int turn = kByWord ? 2 * (line & 3) : kChunks >= 8 ? line & 7 : (line >> 1) & 3;
    return line * kPitch + (chunk ^ turn) * kChunk;
  }
  static __device__ __forceinline__ uint32_t word(const char* base, int line, int extent) {
    uint32_t value;
    memcpy(&value, base + offset(line, extent / 4) + extent % 4 * 4, 4);
    return value;
  }

  // Rows [row, row + 16) of A at a step.
  static __device__ __forceinline__ void load_a(uint32_t (&a)[4], const char* base, int row, int step) {
    const int lane = lane_id();
    if constexpr (kAlong) {
      arch::ldmatrix_x4(a, base + offset(row + (lane & 15), 2 * step ^ (lane >> 4)));
    } else if constexpr (!kByWord) {
      arch::ldmatrix_x4_trans(a, base + offset(16 * step + (lane & 7) + 8 * (lane >> 4), row / 8 + ((lane >> 3) & 1)));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = word(base, 8 * step + lane % 4 + 4 * (i / 2), row + lane / 4 + 8 * (i % 2));
    }
  }
  // Columns [column, column + 16) of B at a step: registers 0, 1 for the first eight, 2, 3 for the others.
  static __device__ __forceinline__ void load_b(uint32_t (&b)[4], const char* base, int column, int step) {
    const int lane = lane_id();
    if constexpr (kAlong) {
      arch::ldmatrix_x4(b, base + offset(column + (lane & 7) + 8 * (lane >> 4), 2 * step ^ ((lane >> 3) & 1)));
    } else if constexpr (!kByWord) {
      arch::ldmatrix_x4_trans(b, base + offset(16 * step + (lane & 15), column / 8 + (lane >> 4)));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) b[i] = word(base, 8 * step + lane % 4 + 4 * (i % 2), column + lane / 4 + 8 * (i / 2));
    }
  }
};

// c += a b for each pair of fragments, by one instruction.
template <auto kMma, class Sum, int kRows, int kColumns, int kPairs>
__device__ __forceinline__ void multiply_fragments(Sum (&c)[kRows][kColumns][4], const uint32_t (&a)[kRows][4],
                                                   const uint32_t (&b)[kPairs][4]) {
  static_assert(kColumns == 2 * kPairs);
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j) kMma(c[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
}

// How a warp multiplies kRows x 16 by kPairs x 16 fragments into c; sums of a stage go to `total` in between if asked.
// Sums leave in runs of 16 bytes of Stored.
template <class T>
struct Mma16 {
  using Element = T;
  using Sum = float;
  using Stored = T;
  static constexpr bool kSumsStages = false;
  template <int kRows, int kPairs>
  static __device__ __forceinline__ void multiply(float (&c)[kRows][2 * kPairs][4], uint32_t (&a)[kRows][4],
                                                  uint32_t (&b)[kPairs][4]) {
    multiply_fragments<arch::mma_16<T>>(c, a, b);
  }
};

struct MmaTf32 {
  using Element = float;
  using Sum = float;
  using Stored = float;
  static constexpr bool kSumsStages = false;
  template <int kRows, int kPairs>
  static __device__ __forceinline__ void multiply(float (&c)[kRows][2 * kPairs][4], uint32_t (&a)[kRows][4],
                                                  uint32_t (&b)[kPairs][4]) {
#pragma unroll
    for (int i = 0; i < kRows * 4; ++i) a[i / 4][i % 4] = arch::to_tf32(a[i / 4][i % 4]);
#pragma unroll
    for (int i = 0; i < kPairs * 4; ++i) b[i / 4][i % 4] = arch::to_tf32(b[i / 4][i % 4]);
    multiply_fragments<arch::mma_tf32>(c, a, b);
  }
};

__device__ __forceinline__ bool is_finite_word(uint32_t word) { return (word & 0x7f800000u) != 0x7f800000u; }

// The magnitude from which tf32 rounds to infinity; what is not finite is above.
inline constexpr uint32_t kBeyondTf32 = 0x7f7ff000u;

// As arch::to_tf32, which takes twice the instructions for words that are not finite.
__device__ __forceinline__ uint32_t ordinary_to_tf32(uint32_t word) { return (word + 0x1000u) & 0xffffe000u; }

// word = big + small, both tf32, of magnitudes below kBeyondTf32.
__device__ __forceinline__ void split_ordinary_word(uint32_t word, uint32_t& big, uint32_t& small) {
  big = ordinary_to_tf32(word);
  small = ordinary_to_tf32(__float_as_uint(__uint_as_float(word) - __uint_as_float(big)));
}

// The same of any word. Not finite, or so large that it would round to infinity: big is the word cut off.
__device__ __forceinline__ void split_word(uint32_t word, uint32_t& big, uint32_t& small) {
  const uint32_t rounded = arch::to_tf32(word);
  big = is_finite_word(rounded) ? rounded : word & 0xffffe000u;
  small = is_finite_word(word) ? arch::to_tf32(__float_as_uint(__uint_as_float(word) - __uint_as_float(big))) : 0;
}

// fp32 to about 22 bits a product: big * big + big * small + small * big. Where a big part is not finite, the mixed
// products leave it out, or infinity times a small part of zero would make NaN of an infinite result. Each stage has a
// sum of its own, since the tensor core cuts off what a long sum cannot hold.
struct MmaSplit {
  using Element = float;
  using Sum = float;
  using Stored = float;
  static constexpr bool kSumsStages = true;
  template <int kRows, int kPairs>
  static __device__ __forceinline__ void multiply(float (&c)[kRows][2 * kPairs][4], uint32_t (&a)[kRows][4],
                                                  uint32_t (&b)[kPairs][4]) {
    uint32_t small_a[kRows][4], small_b[kPairs][4];
    // One vote saves most instructions of the loop: hardly ever is a word of a warp anything but ordinary.
    const bool ordinary = __all_sync(0xffffffffu, max(largest(a), largest(b)) < kBeyondTf32);
    if (ordinary) {
      split<split_ordinary_word>(a, small_a);
      split<split_ordinary_word>(b, small_b);
    } else {
      split<split_word>(a, small_a);
      split<split_word>(b, small_b);
    }
    multiply_fragments<arch::mma_tf32>(c, a, b);
    if (!ordinary) {
      leave_out_infinities(a);
      leave_out_infinities(b);
    }
    multiply_fragments<arch::mma_tf32>(c, small_a, b);
    multiply_fragments<arch::mma_tf32>(c, a, small_b);
  }

 private:
  template <int kCount>
  static __device__ __forceinline__ uint32_t largest(const uint32_t (&words)[kCount][4]) {
    uint32_t found = 0;
#pragma unroll
    for (int i = 0; i < kCount * 4; ++i) found = max(found, words[i / 4][i % 4] & 0x7fffffffu);
    return found;
  }
  template <auto kSplit, int kCount>
  static __device__ __forceinline__ void split(uint32_t (&words)[kCount][4], uint32_t (&small)[kCount][4]) {
#pragma unroll
    for (int i = 0; i < kCount * 4; ++i) kSplit(words[i / 4][i % 4], words[i / 4][i % 4], small[i / 4][i % 4]);
  }
  template <int kCount>
  static __device__ __forceinline__ void leave_out_infinities(uint32_t (&words)[kCount][4]) {
#pragma unroll
    for (int i = 0; i < kCount * 4; ++i)
      words[i / 4][i % 4] = is_finite_word(words[i / 4][i % 4]) ? words[i / 4][i % 4] : 0;
  }
};

// Elements of 8 bits, whose result has another type, which the call names.
template <class Math>
inline constexpr bool kNarrow = sizeof(typename Math::Element) == 1;

// int8, in exact sums.
struct MmaS8 {
  using Element = int8_t;
  using Sum = int32_t;
  using Stored = Half;
  static constexpr bool kSumsStages = false;
  template <int kRows, int kPairs>
  static __device__ __forceinline__ void multiply(int32_t (&c)[kRows][2 * kPairs][4], uint32_t (&a)[kRows][4],
                                                  uint32_t (&b)[kPairs][4]) {
    multiply_fragments<arch::mma_s8>(c, a, b);
  }
};

// float8_e4m3fn. Some tensor cores are seen to hold sums of these in fewer bits than fp32 has: each stage has its own.
struct MmaE4m3 {
  using Element = uint8_t;
  using Sum = float;
  using Stored = Half;
  static constexpr bool kSumsStages = true;
  template <int kRows, int kPairs>
  static __device__ __forceinline__ void multiply(float (&c)[kRows][2 * kPairs][4], uint32_t (&a)[kRows][4],
                                                  uint32_t (&b)[kPairs][4]) {
    multiply_fragments<arch::mma_e4m3>(c, a, b);
  }
};

// A block's tile of the result, and its share among warps. kBlocks: blocks that should fit on a multiprocessor.
template <int kRowsOfTile, int kColumnsOfTile, int kRowsOfWarp, int kColumnsOfWarp, int kStagesOfPipeline, int kBlocks>
struct MmaTile {
  static constexpr int kRows = kRowsOfTile, kColumns = kColumnsOfTile;
  static constexpr int kWarpRows = kRowsOfWarp, kWarpColumns = kColumnsOfWarp;
  static constexpr int kThreads = kRows / kWarpRows * (kColumns / kWarpColumns) * 32;
  static constexpr int kStages = kStagesOfPipeline, kResident = kBlocks;
  static constexpr int kFragments = kWarpRows / kMmaRows, kPairs = kWarpColumns / (2 * kMmaColumns);

  static __device__ __forceinline__ int warp_row() {
    return static_cast<int>(threadIdx.x) / 32 / (kColumns / kWarpColumns) * kWarpRows;
  }
  static __device__ __forceinline__ int warp_column() {
    return static_cast<int>(threadIdx.x) / 32 % (kColumns / kWarpColumns) * kWarpColumns;
  }
};

// The sums of one warp.
template <class Math, class Tile>
struct WarpSums {
  using Sum = typename Math::Sum;
  Sum c[Tile::kFragments][2 * Tile::kPairs][4] = {};

  // Adds the products of one stage.
  template <class A, class B>
  __device__ __forceinline__ void add(const char* a, const char* b) {
    if constexpr (Math::kSumsStages) {
      Sum sum[Tile::kFragments][2 * Tile::kPairs][4] = {};
      multiply<A, B>(sum, a, b);
#pragma unroll
      for (int i = 0; i < Tile::kFragments; ++i)
#pragma unroll
        for (int j = 0; j < 2 * Tile::kPairs; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) c[i][j][e] += sum[i][j][e];
    } else {
      multiply<A, B>(c, a, b);
    }
  }

 private:
  template <class A, class B>
  static __device__ __forceinline__ void multiply(Sum (&c)[Tile::kFragments][2 * Tile::kPairs][4], const char* a,
                                                  const char* b) {
#pragma unroll
    for (int step = 0; step < A::kSteps; ++step) {
      uint32_t left[Tile::kFragments][4], right[Tile::kPairs][4];
#pragma unroll
      for (int i = 0; i < Tile::kFragments; ++i) A::load_a(left[i], a, Tile::warp_row() + kMmaRows * i, step);
#pragma unroll
      for (int j = 0; j < Tile::kPairs; ++j) B::load_b(right[j], b, Tile::warp_column() + 2 * kMmaColumns * j, step);
      Math::template multiply<Tile::kFragments, Tile::kPairs>(c, left, right);
    }
  }
};

}  // namespace atrousops::cuda
