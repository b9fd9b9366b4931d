// The way out of a warpgroup's sums: a warp's 16 rows, by pieces of 128 bytes.
//
// A piece is laid in shared memory as fragments have it, and leaves it by rows: eight lanes store a line of global
// memory, 16 bytes each. Chunks of 16 bytes exchange their places within a row so that neither side meets the other's
// banks.
#pragma once

#include "cuda/arch/ldmatrix.h"
#include "cuda/arch/pair.h"
#include "cuda/arch/stmatrix.h"
#include "cuda/arch/store.h"
#include "cuda/wgmma_tile.cuh"

namespace atrousops::cuda {

// Rows lie below 2^32 - 1 times 16 bytes.
inline constexpr uint32_t kNoRow = ~0u;

inline constexpr int kWarpRows = 16, kPieceBytes = kWarpRows * kSpan;  // of shared memory, for a warp

// A value that is not computed again wherever it is used.
template <class V>
__device__ __forceinline__ V hidden(V v) {
#ifndef ATROUSOPS_HOST_CUDA
  if constexpr (sizeof(V) == 8) {
    asm volatile("" : "+l"(v));
  } else {
    asm volatile("" : "+r"(v));
  }
#endif
  return v;
}

// This thread's, in a way that the compiler does not see through: so it keeps nothing that is made of it in registers
// while sums are added up.
__device__ __forceinline__ unsigned hidden_lane() { return hidden(threadIdx.x % 32); }

template <class T>
class WgmmaPiece {
 public:
  static constexpr bool kPairs = sizeof(T) == 2;
  static constexpr int kColumns = kSpan / static_cast<int>(sizeof(T));
  // A lane has so many sums of a quarter of the columns, which are four words in memory.
  static constexpr int kSums = kColumns / 8, kWords = 4, kQuarters = 4;
  static constexpr int kLines = 4;  // rows of which a lane has 16 bytes

  __device__ __forceinline__ WgmmaPiece(char* all, int warp) : all_(all), lane_(hidden_lane()) {
    const unsigned row = kPairs ? lane_ % 16 : lane_ / 4, chunk = kPairs ? lane_ / 16 : lane_ % 4 / 2;
    mine_ = static_cast<unsigned>(warp * kPieceBytes);
    fragment_ = hidden(mine_ + offset(row, chunk) + (kPairs ? 0 : lane_ % 2 * 8));
    line_ = hidden(mine_ + offset(lane_ / 8, lane_ % 8));
    boxed_ = kPairs ? fragment_ : hidden(mine_ + row * kSpan + (chunk ^ row % 8) * 16 + lane_ % 2 * 8);
  }
  // Which rows of the 16 this lane's lines are, and where in a row of the piece its 16 bytes begin.
  __device__ __forceinline__ int row(int line) const { return static_cast<int>(lane_ / 8) + 4 * line; }
  __device__ __forceinline__ int byte() const { return static_cast<int>(lane_ % 8 * 16); }
  // The row that this lane may find out about for others.
  __device__ __forceinline__ int known_row() const { return static_cast<int>(lane_ % kWarpRows); }
  // The column of a piece's first sum is twice that; sum i has 8 (i / 4) + i % 2 more.
  __device__ __forceinline__ int quad() const { return static_cast<int>(lane_ % 4); }
  // The i-th quarter of the piece's columns.
  __device__ __forceinline__ void put(int i, const uint32_t (&w)[kWords]) const {
    if constexpr (kPairs) {
      arch::stmatrix_x4(at(i), w);
    } else {
      *reinterpret_cast<uint2*>(at(i)) = make_uint2(w[0], w[1]);
      *reinterpret_cast<uint2*>(at(i) + 8 * kSpan) = make_uint2(w[2], w[3]);
    }
  }
  // The same of a box of all warps' rows, as TMA lays it. boxed(): where in a box this lane's begin.
  __device__ __forceinline__ unsigned boxed() const { return boxed_; }
  static __device__ __forceinline__ void get(const char* box, unsigned boxed, int i, uint32_t (&w)[kWords]) {
    const char* const from = box + (boxed ^ 32u * static_cast<unsigned>(i));
    if constexpr (kPairs) {
      arch::ldmatrix_x4(w, from);
    } else {
      const uint2 a = *reinterpret_cast<const uint2*>(from), b = *reinterpret_cast<const uint2*>(from + 8 * kSpan);
      w[0] = a.x, w[1] = a.y, w[2] = b.x, w[3] = b.y;
    }
  }
  // The rows of a lane's lines are four apart.
  __device__ __forceinline__ uint4& line(int i) const {
    return *reinterpret_cast<uint4*>(all_ + (line_ ^ key(4 * static_cast<unsigned>(i)) * 16) + 4 * kSpan * i);
  }
  __device__ __forceinline__ uint4& chunk(unsigned row, unsigned i) const {
    return *reinterpret_cast<uint4*>(all_ + mine_ + offset(row, i));
  }

 private:
  static __device__ __forceinline__ unsigned key(unsigned row) { return kPairs ? row % 8 : row % 4 * 2; }
  static __device__ __forceinline__ unsigned offset(unsigned row, unsigned chunk) {
    return row * kSpan + (chunk ^ key(row)) * 16;
  }
  // A quarter is two chunks wide.
  __device__ __forceinline__ char* at(int i) const { return all_ + (fragment_ ^ 32u * static_cast<unsigned>(i)); }

  char* all_;
  unsigned lane_, mine_, fragment_, line_, boxed_;  // behind all_: the warp's piece, and where this lane's begin in it
};

// A lane's lines of a warp's rows: where they begin in memory, at the lane's first 16 bytes, and how many bytes from
// there on exist: none of a row that does not.
template <class T>
struct WgmmaLines {
  using Piece = WgmmaPiece<T>;
  char* to[Piece::kLines];
  int left[Piece::kLines];

  // Of rows of so many columns. mine: so many 16 bytes behind `from` the row begins that is this lane's known_row(), or
  // kNoRow.
  __device__ __forceinline__ WgmmaLines(const Piece& piece, void* from, uint32_t mine, int columns) {
    char* const first = hidden(static_cast<char*>(from) + piece.byte());
    const int most = columns * static_cast<int>(sizeof(T)) - piece.byte();
#pragma unroll
    for (int i = 0; i < Piece::kLines; ++i) {
      const uint32_t row = __shfl_sync(0xffffffffu, mine, piece.row(i));
      to[i] = first + uint64_t{row} * 16;
      left[i] = row == kNoRow ? 0 : most;
    }
  }
  // Calls f(line) for those that have bytes in a piece.
  template <class F>
  __device__ __forceinline__ void each_of(int p, const F& f) const {
#pragma unroll
    for (int i = 0; i < Piece::kLines; ++i)
      if (p * kSpan < left[i]) f(i);
  }
};

// Stores a warp's rows. Before a piece is rounded, finish(piece, v) may change its sums, in fp32: kQuarters times kSums
// of a lane. relu: what is stored of 16 bits is at least 0.
template <class T, class Tile, class F>
__device__ __forceinline__ void store_rows(WgmmaSums<Tile>& sums, const WgmmaPiece<T>& piece,
                                           const WgmmaLines<T>& lines, bool relu, const F& finish) {
  using Piece = WgmmaPiece<T>;
  static_assert(Tile::kBlocks == 1);
#pragma unroll
  for (int p = 0; p < Tile::kColumns / Piece::kColumns; ++p) {
    // Whole numbers too, which are rounded here, piece by piece, for all at once would need other registers.
    float all[Piece::kQuarters * Piece::kSums];
#pragma unroll
    for (int i = 0; i < Piece::kQuarters * Piece::kSums; ++i)
      all[i] = static_cast<float>(sums.d[0][p * Piece::kQuarters * Piece::kSums + i]);
    __syncwarp();  // all have read what was here
    finish(p, all);
    const auto put = [&](const auto& word) {
#pragma unroll
      for (int quarter = 0; quarter < Piece::kQuarters; ++quarter) {
        const float* const v = all + quarter * Piece::kSums;
        uint32_t words[Piece::kWords];
#pragma unroll
        for (int i = 0; i < Piece::kWords; ++i) words[i] = word(v, i);
        piece.put(quarter, words);
      }
    };
    if constexpr (!Piece::kPairs) {
      put([](const float* v, int i) { return __float_as_uint(v[i]); });
    } else if (relu) {
      put([](const float* v, int i) { return arch::pair_of_relu<T>(v[2 * i], v[2 * i + 1]); });
    } else {
      put([](const float* v, int i) { return arch::pair_of<T>(v[2 * i], v[2 * i + 1]); });
    }
    __syncwarp();
    uint4 out[Piece::kLines];
#pragma unroll
    for (int i = 0; i < Piece::kLines; ++i) out[i] = piece.line(i);
    lines.each_of(p, [&](int i) { arch::store_16(lines.to[i] + p * kSpan, out[i]); });
  }
}

// Calls f(row of the warp's 16, column, values[8]) for every run of eight columns, in code that is short and slow.
template <class Tile, class F>
__device__ __forceinline__ void each_run_of_sums(const WgmmaSums<Tile>& sums, char* pieces, int warp, const F& f) {
  using Piece = WgmmaPiece<float>;
  static_assert(Tile::kBlocks == 1);
  const Piece piece(pieces, warp);
  const unsigned lane = hidden_lane();
  // Registers have no index, so each turn finds its own.
#pragma unroll 1
  for (int turn = 0; turn < Tile::kColumns / Piece::kColumns; ++turn) {
    __syncwarp();
#pragma unroll
    for (int p = 0; p < Tile::kColumns / Piece::kColumns; ++p) {
      if (p != turn) continue;
#pragma unroll
      for (int quarter = 0; quarter < Piece::kQuarters; ++quarter) {
        uint32_t words[Piece::kWords];
#pragma unroll
        for (int i = 0; i < Piece::kWords; ++i)
          words[i] =
              __float_as_uint(static_cast<float>(sums.d[0][(Piece::kQuarters * p + quarter) * Piece::kSums + i]));
        piece.put(quarter, words);
      }
    }
    __syncwarp();
#pragma unroll 1
    for (unsigned row = lane / 4; row < kWarpRows; row += 8) {
      const uint4 a = piece.chunk(row, lane % 4 * 2), b = piece.chunk(row, lane % 4 * 2 + 1);
      const uint32_t bits[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
      float values[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = __uint_as_float(bits[i]);
      f(static_cast<int>(row), turn * Piece::kColumns + static_cast<int>(lane % 4 * 8), values);
    }
  }
}

}  // namespace atrousops::cuda
