// A residual on its way into the sums of conv_wgmma.cuh: TMA brings it through the ring, as a tile's last stages, while
// the last products run. A stage holds boxes of 128 bytes of columns behind each other.
#pragma once

#include "cuda/arch/tma.h"
#include "cuda/conv_wgmma_tiles.cuh"
#include "cuda/wgmma_rows.cuh"

namespace atrousops::cuda {

template <class Tile>
class ConvWgmmaResidual {
 public:
  using T = typename Tile::Out;
  using Piece = WgmmaPiece<T>;
  using Ring = Pipeline<Tile::kStages>;
  using At = Turn<Tile::kStages>;
  static constexpr int kBoxBytes = Tile::kRows * kSpan, kBoxes = Tile::kColumns / Piece::kColumns;
  static constexpr int kOfStage = Tile::kStageBytes / kBoxBytes, kTurns = (kBoxes + kOfStage - 1) / kOfStage;
  static_assert(kTurns <= Tile::kStages);

  // The loading thread. All bytes are the last stage's, so that there is one to wait for.
  static __device__ __forceinline__ void load(const ConvWgmmaMaps& maps, const ConvWgmmaArgs& args, char* stages,
                                              const Ring& ring, At& turn, const ConvWgmmaFound<Tile::kColumns>& found) {
    At to = turn;
#pragma unroll
    for (int i = 0; i + 1 < kTurns; ++i, turn.next()) ring.fill(turn, 0);
    arch::Mbarrier* const full = ring.fill(turn, static_cast<unsigned>(kBoxes * args.box_bytes));
    turn.next();
    const ConvWgmmaWork& work = found.work;
#pragma unroll 1
    for (int i = 0; i < kBoxes; ++i) {
      if (i > 0 && i % kOfStage == 0) to.next();
      const int box[5] = {found.sum.column + i * Piece::kColumns, work.written[2], work.written[1], work.written[0],
                          work.image};
      arch::tma_load(stages + to.stage() * Tile::kStageBytes + i % kOfStage * kBoxBytes, &maps.residual(), box, full);
    }
  }

  // A warp that multiplies; turn: that of the first stage.
  __device__ __forceinline__ ConvWgmmaResidual(const Piece& piece, const char* stages, At turn)
      : piece_(piece), stages_(stages), at_(turn) {}
  __device__ __forceinline__ void wait(const Ring& ring) const {
    At last = at_;
    last.skip(kTurns - 1);
    ring.wait_full(last);
  }
  // Adds a piece to its sums, piece after piece. One lane calls release(turn) when a stage has been read.
  template <class F>
  __device__ __forceinline__ void add(int p, float* all, const F& release) {
    if (p % kOfStage == 0) {
      if (p > 0) at_.next();
      boxed_ = hidden(piece_.boxed() + static_cast<unsigned>(at_.stage() * Tile::kStageBytes));
    }
#pragma unroll
    for (int quarter = 0; quarter < Piece::kQuarters; ++quarter) {
      float* const v = all + quarter * Piece::kSums;
      uint32_t words[Piece::kWords];
      Piece::get(stages_ + p % kOfStage * kBoxBytes, boxed_, quarter, words);
#pragma unroll
      for (int i = 0; i < Piece::kWords; ++i) {
        if constexpr (Piece::kPairs) {
          v[2 * i] += arch::low_of<T>(words[i]);
          v[2 * i + 1] += arch::high_of<T>(words[i]);
        } else {
          v[i] += __uint_as_float(words[i]);
        }
      }
    }
    if ((p + 1) % kOfStage != 0 && p + 1 < kBoxes) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) release(at_);
  }

 private:
  const Piece& piece_;
  const char* stages_;
  At at_;
  unsigned boxed_ = 0;
};

}  // namespace atrousops::cuda
