// Operands into shared memory, and sums out of registers.
#pragma once

#include "cuda/arch/cp_async.h"
#include "cuda/mma_tile.cuh"

namespace atrousops::cuda {

// Where a line of an operand begins in global memory, in elements.
struct CopyLine {
  int64_t offset;
  bool exists;
};

// A thread's share of copying an operand: the same chunk of every kLinesApart-th line. kWide: lines are aligned to 16
// bytes and chunks have all their elements or none; otherwise elements are moved one by one into the same places.
template <class T, class Operand, int kThreads, bool kWide>
struct CopyOperand {
  static constexpr int kLinesApart = kThreads / Operand::kChunks;
  static constexpr int kCount = Operand::kLines / kLinesApart;
  static_assert(kThreads % Operand::kChunks == 0 && Operand::kLines % kLinesApart == 0);

  int64_t line[kCount];
  uint32_t exists = 0;

  static __device__ __forceinline__ int chunk() { return static_cast<int>(threadIdx.x) % Operand::kChunks; }
  static __device__ __forceinline__ int first_line() { return static_cast<int>(threadIdx.x) / Operand::kChunks; }

  template <class F>
  __device__ __forceinline__ void set_lines(const F& f) {
    exists = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const CopyLine l = f(first_line() + i * kLinesApart);
      line[i] = l.offset;
      exists |= static_cast<uint32_t>(l.exists) << i;
    }
  }

  // Lines set before, each from `shift` elements on, of which `left` exist.
  __device__ __forceinline__ void copy(char* to, const T* from, int64_t shift, int64_t left) const {
    copy_each(to, from, left - chunk() * kChunkOf<T>,
              [&](int i) { return CopyLine{line[i] + shift, (exists >> i & 1) != 0}; });
  }

  // Lines `pitch` elements apart of which `lines` exist, with `left` elements each.
  __device__ __forceinline__ void copy_lines(char* to, const T* from, int64_t shift, int64_t pitch, int64_t lines,
                                             int64_t left) const {
    copy_each(to, from, left - chunk() * kChunkOf<T>, [&](int i) {
      const int l = first_line() + i * kLinesApart;
      return CopyLine{shift + l * pitch, l < lines};
    });
  }

 private:
  // `left` counts from this thread's chunk.
  template <class F>
  static __device__ __forceinline__ void copy_each(char* to, const T* from, int64_t left, const F& f) {
    const int here = chunk() * kChunkOf<T>;
    const int count = static_cast<int>(left <= 0 ? 0 : left < kChunkOf<T> ? left : kChunkOf<T>);
    if constexpr (kWide) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const CopyLine l = f(i);
        const bool reads = l.exists && count > 0;
        arch::cp_async<kChunk>(to + Operand::offset(first_line() + i * kLinesApart, chunk()),
                               from + (reads ? l.offset + here : 0), reads ? kChunk : 0);
      }
    } else {
      narrow(to, from, here, count, f);
    }
  }

  template <class F>
  static __device__ __forceinline__ void narrow(char* to, const T* from, int here, int count, const F& f) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const CopyLine l = f(i);
        char* at = to + Operand::offset(first_line() + i * kLinesApart, chunk());
#pragma unroll
        for (int e = 0; e < kChunkOf<T>; ++e) {
          const bool reads = l.exists && e < count;
          arch::cp_async<4>(at + 4 * e, from + (reads ? l.offset + here + e : 0), reads ? 4 : 0);
        }
      }
    } else {
      // Loads first, so that they are under way together.
      uint32_t words[kCount][4];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const CopyLine l = f(i);
        uint16_t bits[kChunkOf<T>];
#pragma unroll
        for (int e = 0; e < kChunkOf<T>; ++e)
          bits[e] = l.exists && e < count ? *reinterpret_cast<const uint16_t*>(from + l.offset + here + e) : 0;
#pragma unroll
        for (int w = 0; w < 4; ++w) words[i][w] = bits[2 * w] | static_cast<uint32_t>(bits[2 * w + 1]) << 16;
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        *reinterpret_cast<uint4*>(to + Operand::offset(first_line() + i * kLinesApart, chunk())) =
            make_uint4(words[i][0], words[i][1], words[i][2], words[i][3]);
    }
  }
};

// A warp lays sixteen rows of its sums side by side, so that neighbouring lanes hold neighbouring channels.
template <class Tile>
inline constexpr int kStagingPitch = Tile::kWarpColumns + 8;  // keeps rows off each other's banks
template <class Tile>
inline constexpr int kStagingBytes =
    Tile::kThreads / 32 * kMmaRows * kStagingPitch<Tile> * static_cast<int>(sizeof(float));

// Which runs of values that make 16 bytes as T are a lane's: one in each of kTurns rows of sixteen, always of the same
// columns.
template <class T, class Tile>
struct LaneRuns {
  static constexpr int kRun = kChunkOf<T>, kAcross = Tile::kWarpColumns / kRun;
  static constexpr int kRowsApart = 32 / kAcross, kTurns = kMmaRows / kRowsApart;
  static constexpr int kPitch = kStagingPitch<Tile>;

  int lane = lane_id(), row = lane / kAcross, column = lane % kAcross * kRun;
  float* mine;  // of the warp

  __device__ __forceinline__ explicit LaneRuns(char* shared)
      : mine(reinterpret_cast<float*>(shared) + threadIdx.x / 32 * kMmaRows * kPitch) {}
  // The sums of sixteen rows.
  template <class Sum>
  __device__ __forceinline__ void put(const Sum (&c)[2 * Tile::kPairs][4]) const {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 2 * Tile::kPairs; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<float2*>(mine + (lane / 4 + 8 * half) * kPitch + kMmaColumns * j + lane % 4 * 2) =
            make_float2(static_cast<float>(c[j][2 * half]), static_cast<float>(c[j][2 * half + 1]));
    __syncwarp();
  }
  __device__ __forceinline__ void get(float (&values)[kRun], int turn) const {
#pragma unroll
    for (int v = 0; v < kRun; v += 4) {
      const float4 four = *reinterpret_cast<const float4*>(mine + (row + turn * kRowsApart) * kPitch + column + v);
      values[v] = four.x, values[v + 1] = four.y, values[v + 2] = four.z, values[v + 3] = four.w;
    }
  }
};

// Calls f(row, column, values) for every run of this lane. `shared` is free.
template <class T, class Math, class Tile, class F>
__device__ __forceinline__ void each_row_of_sums(const WarpSums<Math, Tile>& sums, char* shared, const F& f) {
  using Runs = LaneRuns<T, Tile>;
  const Runs runs(shared);
#pragma unroll
  for (int i = 0; i < Tile::kFragments; ++i) {
    runs.put(sums.c[i]);
#pragma unroll 1  // a block does this once: longer code would only have to be fetched
    for (int turn = 0; turn < Runs::kTurns; ++turn) {
      float values[Runs::kRun];
      runs.get(values, turn);
      f(Tile::warp_row() + kMmaRows * i + runs.row + turn * Runs::kRowsApart, Tile::warp_column() + runs.column,
        values);
    }
  }
}

}  // namespace atrousops::cuda
