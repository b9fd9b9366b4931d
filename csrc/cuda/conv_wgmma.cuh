// The tap-list GEMM on TMA and wgmma: forward, input gradient, transposed.
//
// A tile is a box of positions and images by columns of dst's channels; its sum runs over the taps that are live for
// some position and, inside, over channels of src. For each step one thread has TMA bring the box, displaced by the
// tap, and the weights. What the box reads outside the tensor is zero: that is the padding. Blocks stay for many tiles:
// a warp finds the next ones (conv_wgmma_tiles.cuh), and loads for them go on while sums are written.
//
// Where blocks are paired, both need the same boxes of src, or the same weights, and each brings every second one for
// both: a multiprocessor so reads half of these bytes from the L2 cache.
#pragma once

#include "cuda/arch/barrier.h"
#include "cuda/conv_wgmma_residual.cuh"
#include "cuda/conv_wgmma_tiles.cuh"
#include "cuda/launch.h"
#include "cuda/shared.h"
#include "cuda/wgmma_rows.cuh"

namespace atrousops::cuda {

// A row of every tile: where in the box it lies, and how far in dst from the box's beginning.
struct alignas(16) ConvWgmmaRow {
  int64_t offset;
  uint32_t at;

  __device__ __forceinline__ ConvWgmmaRow(const ConvTable& t, const ConvWgmmaArgs& args, int row) : offset(0), at(0) {
    int32_t rest = row;
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      const int32_t o = args.box[axis].split(rest);
      at |= static_cast<uint32_t>(o) << 8 * axis;
      offset += int64_t{o} * t.p[axis] * t.dst.axis[axis];
    }
    at |= static_cast<uint32_t>(rest) << 8 * kAxes;
    offset += rest * t.dst.n;
  }
  // Whether the box has such a row. No byte borrows from the next: all are below 128.
  __device__ __forceinline__ bool exists(const ConvWgmmaSum& sum) const {
    return (((sum.last | 0x80808080u) - at) & 0x80808080u) == 0x80808080u;
  }
  __device__ __forceinline__ int64_t position(const ConvWgmmaSum& sum) const { return sum.position + offset; }
};

template <class Tile>
struct ConvWgmma {
  static constexpr int kWarps = Tile::kReadingWarps;
  using Ring = Pipeline<Tile::kStages>;
  using Tiles = Pipeline<kTilesAhead>;
  using Found = ConvWgmmaFound<Tile::kColumns>;

  struct Layout {
    char *stages, *pieces;
    Found* found;
    ConvWgmmaRow* rows;
    arch::Mbarrier* barriers;

    __device__ __forceinline__ explicit Layout(SharedArena& arena)
        : stages(arena.take<char, 1024>(Tile::kStages * Tile::kStageBytes)),
          pieces(arena.take<char, 128>(kWarps * kPieceBytes)),
          found(arena.take<Found>(kTilesAhead)),
          rows(arena.take<ConvWgmmaRow>(Tile::kRows)),
          barriers(arena.take<arch::Mbarrier>(Ring::kBarriers + Tiles::kBarriers)) {}
  };
  static int64_t shared_bytes() {
    SharedSize size;
    size.take<char, 1024>(Tile::kStages * Tile::kStageBytes);
    size.take<char, 128>(kWarps * kPieceBytes);
    size.take<Found>(kTilesAhead);
    size.take<ConvWgmmaRow>(Tile::kRows);
    size.take<arch::Mbarrier>(Ring::kBarriers + Tiles::kBarriers);
    return size.bytes();
  }
};

// Runs along the steps of a tile's sum.
struct ConvWgmmaCursor {
  const ConvTable& t;
  const ConvWgmmaArgs& args;
  ConvWgmmaWork work;
  int32_t at[kAxes] = {}, tap = 0;  // where its box begins, and its weights

  __device__ __forceinline__ ConvWgmmaCursor(const ConvTable& t, const ConvWgmmaArgs& args, const ConvWgmmaWork& work)
      : t(t), args(args), work(work) {
    find();
  }
  __device__ __forceinline__ void find() {
    int32_t r[kAxes];
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      if (work.i[axis] >= work.taps[axis]) return;  // beyond the last
      const ConvTap found = t.tap(axis, work.tap_begin[axis] + work.i[axis]);
      at[axis] = work.read[axis] + found.delta;
      r[axis] = found.r;
    }
    const int32_t* strides = args.branch[work.branch].tap_strides;
    tap = r[0] * strides[0] + r[1] * strides[1] + r[2];
  }
  __device__ __forceinline__ void next() {
    if (++work.block < args.channel_blocks) return;
    work.block = 0;
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      if (++work.i[axis] < work.taps[axis] || axis == 0) break;
      work.i[axis] = 0;
    }
    find();
  }
};

template <class Tile>
__device__ __forceinline__ void load_wgmma_tiles(const ConvTable& t, const ConvWgmmaMaps& maps,
                                                 const ConvWgmmaArgs& args,
                                                 const typename ConvWgmma<Tile>::Layout& shared,
                                                 const Pipeline<Tile::kStages>& ring,
                                                 const Pipeline<kTilesAhead>& tiles) {
  using B = typename Tile::B;
  arch::tma_prefetch(&maps.src);
  const unsigned rank = arch::cluster_rank();
  const uint16_t both = 3;
  static_assert(Tile::kStages % 2 == 0);  // a stage is filled by the same block in all rounds
  Turn<Tile::kStages> turn;
  for (Turn<kTilesAhead> tile;; tile.next()) {
    tiles.wait_full(tile);
    if (shared.found[tile.stage()].sum.steps < 0) return;
    ConvWgmmaCursor cursor(t, args, shared.found[tile.stage()].work);
    const int32_t steps = shared.found[tile.stage()].sum.steps, column = shared.found[tile.stage()].sum.column;
    const TensorMap* weights = &maps.weights[cursor.work.branch];
    for (int32_t step = 0; step < steps; ++step) {
      arch::Mbarrier* const full = ring.fill(turn, static_cast<unsigned>(args.box_bytes + B::kBytes));
      char* const stage = shared.stages + turn.stage() * Tile::kStageBytes;
      const int32_t channel = cursor.work.block * Tile::kDepth;
      const int box[5] = {channel, cursor.at[2], cursor.at[1], cursor.at[0], cursor.work.image};
      const auto bring = [&](core::Pairs shared, char* to, const TensorMap* from, const auto& at) {
        if (args.pairs != shared) {
          arch::tma_load(to, from, at, full);
        } else if (static_cast<unsigned>(turn.stage()) % 2 == rank) {
          arch::tma_load_multicast(to, from, at, full, both);
        }
      };
      bring(core::Pairs::map, stage, &maps.src, box);
#pragma unroll
      for (int i = 0; i < B::kBoxes; ++i) {
        const int along[3] = {channel, cursor.tap, column}, across[3] = {column + i * B::kOfSpan, cursor.tap, channel};
        bring(core::Pairs::weights, stage + Tile::A::kBytes + i * B::kBoxBytes, weights, B::kAlong ? along : across);
      }
      cursor.next();
      turn.next();
    }
    if (args.residual) ConvWgmmaResidual<Tile>::load(maps, args, shared.stages, ring, turn, shared.found[tile.stage()]);
    tiles.release(tile);
  }
}

// The lines of a tensor that has `pitch` elements a position, in whole 16 bytes.
template <class T>
__device__ __forceinline__ WgmmaLines<T> lines_of(const WgmmaPiece<T>& piece, void* base, int64_t pitch,
                                                  const ConvWgmmaRow* rows, const ConvWgmmaSum& sum, int columns) {
  const ConvWgmmaRow& row = rows[piece.known_row()];
  const auto chunks = static_cast<uint32_t>(static_cast<uint64_t>(pitch) / (16 / sizeof(T)));
  return {piece, static_cast<T*>(base) + sum.column,
          row.exists(sum) ? static_cast<uint32_t>(row.position(sum)) * chunks : kNoRow, columns};
}

// As conv_finish, for rows of whole chunks of 16 bytes that lie at multiples of 16. residual(piece, sums) adds one.
template <class T, class Tile, class R>
__device__ __forceinline__ void finish_rows(WgmmaSums<Tile>& sums, const WgmmaPiece<T>& piece, const ConvEpilogue& e,
                                            const ConvWgmmaFound<Tile::kColumns>& found, const WgmmaLines<T>& lines,
                                            bool has_residual, const R& residual) {
  using Piece = WgmmaPiece<T>;
  constexpr int kSums = Piece::kQuarters * Piece::kSums;
  const auto each = [&](int p, const float* parameters, float* all, const auto& f) {
#pragma unroll
    for (int i = 0; i < kSums; i += 8) {
      const float4 four = *reinterpret_cast<const float4*>(parameters + p * Piece::kColumns + 2 * i + 4 * piece.quad());
      float* const v = all + i;
      v[0] = f(v[0], four.x), v[1] = f(v[1], four.y), v[2] = f(v[2], four.x), v[3] = f(v[3], four.y);
      v[4] = f(v[4], four.z), v[5] = f(v[5], four.w), v[6] = f(v[6], four.z), v[7] = f(v[7], four.w);
    }
  };
  store_rows<T>(sums, piece, lines, e.relu, [&](int p, float* v) {
    if (e.scale) each(p, found.scale, v, [](float a, float b) { return __fmul_rn(a, b); });
    if (e.bias) each(p, found.bias, v, [](float a, float b) { return __fadd_rn(a, b); });
    if (has_residual) residual(p, v);
    if (!Piece::kPairs && e.relu)
#pragma unroll
      for (int i = 0; i < kSums; ++i) v[i] = v[i] < 0 ? 0.0f : v[i];  // not NaN
  });
}

template <class Tile, class F>
__device__ __forceinline__ void finish_wgmma_tile(const ConvTable& t, const ConvWgmmaArgs& args,
                                                  const typename ConvWgmma<Tile>::Layout& shared,
                                                  const ConvWgmmaFound<Tile::kColumns>& found, WgmmaSums<Tile>& sums,
                                                  const Pipeline<Tile::kStages>& ring, Turn<Tile::kStages> turn,
                                                  int warp, const ConvWgmmaRow* rows, const F& release) {
  using T = typename Tile::Out;
  const ConvWgmmaSum& sum = found.sum;
  const ConvEpilogue& e = args.branch[sum.branch].epilogue;
  const int columns = min(static_cast<int>(t.dst_channels) - sum.column, Tile::kColumns);
  if (args.whole && !args.part) {
    const WgmmaPiece<T> piece(shared.pieces, warp);
    const WgmmaLines<T> lines = lines_of<T>(piece, e.dst, e.dst_pitch, rows, sum, columns);
    ConvWgmmaResidual<Tile> residual(piece, shared.stages, turn);
    if (args.residual) residual.wait(ring);
    return finish_rows<T>(sums, piece, e, found, lines, args.residual != 0,
                          [&](int p, float* v) { residual.add(p, v, release); });
  }
  float* const part = args.part ? args.part + (sum.branch * args.splits.value() + sum.part) * args.part_size : nullptr;
  if (args.whole) {
    const WgmmaPiece<float> piece(shared.pieces, warp);
    const WgmmaLines<float> lines = lines_of<float>(piece, part, t.dst_channels, rows, sum, columns);
    return store_rows<float>(sums, piece, lines, false, [](int, float*) {});
  }
  each_run_of_sums(sums, shared.pieces, warp, [&](int row, int at, float (&values)[8]) {
    const int64_t to = rows[row].position(sum), channel = sum.column + at, left = t.dst_channels - channel;
    if (!rows[row].exists(sum) || left <= 0) return;
    const int count = static_cast<int>(left < 8 ? left : 8);
    if (!part) return conv_finish<T>(e, values, to, channel, count);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < count) part[to * t.dst_channels + channel + i] = values[i];
  });
}

// One warpgroup of the two begins some steps behind the other, and stays there: while one writes its rows of a tile,
// the tensor cores are the other's, which so catches up, and falls behind again while it writes its own.
template <class Tile>
__device__ __forceinline__ void begin_behind(const typename ConvWgmma<Tile>::Layout& shared,
                                             const Pipeline<Tile::kStages>& ring, const Pipeline<kTilesAhead>& tiles) {
  constexpr int kBehind = Tile::kStages / 2;
  tiles.wait_full({});
  if (shared.found[0].sum.steps <= kBehind) return;
  Turn<Tile::kStages> later;
  for (int i = 0; i < kBehind; ++i) later.next();
  ring.wait_full(later);
}

template <class Tile>
__device__ __forceinline__ void multiply_wgmma_tiles(const ConvTable& t, const ConvWgmmaArgs& args,
                                                     const typename ConvWgmma<Tile>::Layout& shared,
                                                     const Pipeline<Tile::kStages>& ring,
                                                     const Pipeline<kTilesAhead>& tiles, int warp) {
  const int consumer = warp / 4 - 1, lane = static_cast<int>(threadIdx.x % 32);
  ConvWgmmaRow* const rows = shared.rows + (warp - 4) * kWarpRows;
  if (lane < kWarpRows) rows[lane] = ConvWgmmaRow(t, args, (warp - 4) * kWarpRows + lane);
  __syncwarp();
  if (consumer == 1) begin_behind<Tile>(shared, ring, tiles);
  const auto release = [&](Turn<Tile::kStages> read) {
    ring.release(read);
    if (args.paired()) ring.release(read, arch::cluster_rank() ^ 1);
  };
  Turn<Tile::kStages> turn;
  WgmmaSums<Tile> sums;
  for (Turn<kTilesAhead> tile;; tile.next()) {
    tiles.wait_full(tile);
    const ConvWgmmaFound<Tile::kColumns>& found = shared.found[tile.stage()];
    if (found.sum.steps < 0) return;
    if constexpr (std::is_same_v<typename Tile::T, Float8_e4m3fn>) {
      sums.multiply_apart(ring, turn, shared.stages, consumer, found.sum.steps, release);
    } else {
      sums.multiply_all(ring, turn, shared.stages, consumer, found.sum.steps, release);
    }
    finish_wgmma_tile<Tile>(t, args, shared, found, sums, ring, turn, warp - 4, rows, release);
    turn.skip(args.residual);
    __syncwarp();  // all have read what was found
    if (lane == 0) tiles.release(tile);
  }
}

// Of whole warps. A pair's blocks touch each other's memory between two of these.
__device__ __forceinline__ void sync_pair() {
  arch::cluster_arrive();
  arch::cluster_wait();
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    conv_wgmma_kernel(const __grid_constant__ ConvTable t, const __grid_constant__ ConvWgmmaMaps maps,
                      const __grid_constant__ ConvWgmmaArgs args) {
  SharedArena arena;
  const typename ConvWgmma<Tile>::Layout shared(arena);
  const Pipeline<Tile::kStages> ring(shared.barriers);
  const Pipeline<kTilesAhead> tiles(shared.barriers + Pipeline<Tile::kStages>::kBarriers);
  if (threadIdx.x == 0) {
    ring.init(Tile::kReadingWarps << args.paired());
    tiles.init(Tile::kReadingWarps + 1);
  }
  __syncthreads();
  if (args.paired()) sync_pair();
  const int warp = warp_id();
  // What the warpgroups had at launch, 168 each, in sum; the compiler holds all code to what it starts with. With 56,
  // the loading warps spill.
  if (warp < 4) {
    arch::give_registers<72>();
    if (warp == 0 && arch::elect_one()) load_wgmma_tiles<Tile>(t, maps, args, shared, ring, tiles);
    if (warp == 1) find_wgmma_tiles<typename Tile::Out>(t, args, tiles, shared.found);
  } else {
    arch::take_registers<216>();
    multiply_wgmma_tiles<Tile>(t, args, shared, ring, tiles, warp);
  }
  __syncwarp();
  if (args.paired()) sync_pair();
}

template <class T, arch::Major kB, class Out = T>
void conv_wgmma_start(const ConvWgmmaLaunch& l, Stream stream) {
  const auto start = [&]<class Of>(Of*) {
    using Tile = std::conditional_t<std::is_same_v<T, Out>, Of, WgmmaInto<Of, Out>>;
    Launch where{l.blocks, Tile::kThreads, ConvWgmma<Tile>::shared_bytes()};
    if (l.args.paired()) {
      const Launch pairs{l.blocks / 2 * 2, where.block, where.shared_bytes, 2};
      if (can_place<conv_wgmma_kernel<Tile>>(pairs)) where = pairs;
    }
    ConvWgmmaArgs args = l.args;
    if (where.cluster == 1) args.pairs = core::Pairs::none;
    args.residual = l.args.residual ? ConvWgmmaResidual<Tile>::kTurns : 0;
    launch<conv_wgmma_kernel<Tile>>(where, stream, l.table, l.maps, args);
  };
  constexpr arch::Major kA = arch::Major::k;
  // In the order of core::tile_shapes; as many stages as shared memory holds.
  switch (l.tile) {
    case 0:
      // Two sets of sums of 256 columns are more than a thread has registers.
      if constexpr (std::is_same_v<T, Float8_e4m3fn>) {
        STD_TORCH_CHECK(false, "conv: no wgmma tile of 256 columns for e4m3");
      } else {
        return start(static_cast<WgmmaTile<T, 128, 256, kA, kB, 4>*>(nullptr));
      }
    case 1: return start(static_cast<WgmmaTile<T, 128, 128, kA, kB, 6>*>(nullptr));
    case 2: return start(static_cast<WgmmaTile<T, 128, 64, kA, kB, 8>*>(nullptr));
    default: STD_TORCH_CHECK(false, "conv: no wgmma tile ", l.tile);
  }
}

// Of bytes, into 16 bits.
template <class T>
void conv_wgmma_start_bytes(const ConvWgmmaLaunch& l, Stream stream) {
  if (l.out == ScalarType::Half) return conv_wgmma_start<T, arch::Major::k, Half>(l, stream);
  STD_TORCH_CHECK(l.out == ScalarType::BFloat16, "conv: wgmma of bytes writes 16 bits");
  conv_wgmma_start<T, arch::Major::k, BFloat16>(l, stream);
}

}  // namespace atrousops::cuda
