// The tap-list GEMM on TMA and wgmma: forward, input gradient, transposed.
//
// A tile is a box of positions and images by columns of dst's channels; its sum runs over the taps that are live for
// some position and, inside, over channels of src. For each step one thread has TMA bring the box, displaced by the
// tap, and the weights. What the box reads outside the tensor is zero: that is the padding. Blocks stay for many tiles:
// a warp finds the next ones (conv_wgmma_tiles.cuh), and loads for them go on while sums are written.
//
// Where blocks are paired, both need the same boxes of src, and each brings every second one for both: a multiprocessor
// so reads half of src's bytes from the L2 cache.
#pragma once

#include "cuda/arch/barrier.h"
#include "cuda/arch/cp_async.h"
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
  // In dst, or -1 where the box has no such row. No byte borrows from the next: all are below 128.
  __device__ __forceinline__ int64_t position(const ConvWgmmaSum& sum) const {
    return (((sum.last | 0x80808080u) - at) & 0x80808080u) == 0x80808080u ? sum.position + offset : -1;
  }
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
    tiles.release(tile);
    const TensorMap* weights = &maps.weights[cursor.work.branch];
    for (int32_t step = 0; step < steps; ++step) {
      arch::Mbarrier* const full = ring.fill(turn, static_cast<unsigned>(args.box_bytes + B::kBytes), args.pair != 0);
      char* const stage = shared.stages + turn.stage() * Tile::kStageBytes;
      const int32_t channel = cursor.work.block * Tile::kDepth;
      const int box[5] = {channel, cursor.at[2], cursor.at[1], cursor.at[0], cursor.work.image};
      if (!args.pair) {
        arch::tma_load(stage, &maps.src, box, full);
      } else if (static_cast<unsigned>(turn.stage()) % 2 == rank) {
        arch::tma_load_multicast(stage, &maps.src, box, full, both);
      }
#pragma unroll
      for (int i = 0; i < B::kBoxes; ++i) {
        const int along[3] = {channel, cursor.tap, column}, across[3] = {column + i * B::kOfSpan, cursor.tap, channel};
        arch::tma_load(stage + Tile::A::kBytes + i * B::kBoxBytes, weights, B::kAlong ? along : across, full);
      }
      cursor.next();
      turn.next();
    }
  }
}

// Where this lane's row of a tensor begins that has `pitch` elements a position, from a column on; null where it has no
// such row.
template <class T>
__device__ __forceinline__ const void* row_of(const void* base, const ConvWgmmaRow& row, const ConvWgmmaSum& sum,
                                              int64_t pitch) {
  const int64_t position = row.position(sum);
  return position < 0 ? nullptr : static_cast<const T*>(base) + position * pitch + sum.column;
}

// As conv_finish, for rows of whole chunks of 16 bytes that lie at multiples of 16, a residual's as far apart as dst's.
template <class T, class Tile>
__device__ __forceinline__ void finish_rows(WgmmaSums<Tile>& sums, const WgmmaPiece<T>& piece, const ConvEpilogue& e,
                                            const ConvWgmmaFound<Tile::kColumns>& found, const ConvWgmmaRow* rows,
                                            int64_t channels) {
  using Piece = WgmmaPiece<T>;
  constexpr int kSums = Piece::kQuarters * Piece::kSums;
  const WgmmaLines<T> lines(piece, row_of<T>(e.dst, rows[piece.known_row()], found.sum, e.dst_pitch),
                            (channels - found.sum.column) * static_cast<int64_t>(sizeof(T)));
  const int64_t residual = static_cast<const char*>(e.residual) - static_cast<const char*>(e.dst);
  const auto each = [&](int p, const float* columns, float* all, const auto& f) {
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
      const float2 two = *reinterpret_cast<const float2*>(columns + piece.column() + 2 * (p * kSums + i));
      float* const v = all + i;
      v[0] = f(v[0], two.x), v[1] = f(v[1], two.y), v[2] = f(v[2], two.x), v[3] = f(v[3], two.y);
    }
  };
  const auto add_residual = [&](int p, float* all) {
    lines.each_of(p, [&](int i) { arch::cp_async<16>(&piece.line(i), lines.to[i] + residual + p * kSpan, 16); });
    arch::cp_async_commit();
    arch::cp_async_wait<0>();
    __syncwarp();
#pragma unroll
    for (int quarter = 0; quarter < Piece::kQuarters; ++quarter) {
      float* const v = all + quarter * Piece::kSums;
      uint32_t words[Piece::kWords];
      piece.get(quarter, words);
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
    __syncwarp();
  };
  store_rows<T>(sums, piece, lines, e.relu, [&](int p, float* v) {
    if (e.scale) each(p, found.scale, v, [](float a, float b) { return __fmul_rn(a, b); });
    if (e.bias) each(p, found.bias, v, [](float a, float b) { return __fadd_rn(a, b); });
    if (e.residual) add_residual(p, v);
    if (!Piece::kPairs && e.relu)
#pragma unroll
      for (int i = 0; i < kSums; ++i) v[i] = v[i] < 0 ? 0.0f : v[i];  // not NaN
  });
}

template <class Tile>
__device__ __forceinline__ void finish_wgmma_tile(const ConvTable& t, const ConvWgmmaArgs& args,
                                                  const ConvWgmmaFound<Tile::kColumns>& found, WgmmaSums<Tile>& sums,
                                                  char* pieces, int warp, const ConvWgmmaRow* rows) {
  using T = typename Tile::Out;
  const ConvWgmmaSum& sum = found.sum;
  const ConvEpilogue& e = args.branch[sum.branch].epilogue;
  const bool vectors = e.vector_dst && t.dst_channels % kPack<T> == 0 &&
                       (!e.residual || (e.vector_residual && e.residual_pitch == e.dst_pitch));
  if (!args.part && vectors) return finish_rows<T>(sums, WgmmaPiece<T>(pieces, warp), e, found, rows, t.dst_channels);
  float* const part = args.part ? args.part + (sum.branch * args.splits.value() + sum.part) * args.part_size : nullptr;
  if (part && t.dst_channels % 4 == 0) {
    const WgmmaPiece<float> piece(pieces, warp);
    const WgmmaLines<float> lines(piece, row_of<float>(part, rows[piece.known_row()], sum, t.dst_channels),
                                  4 * (t.dst_channels - sum.column));
    return store_rows<float>(sums, piece, lines, false, [](int, float*) {});
  }
  each_run_of_sums(sums, pieces, warp, [&](int row, int at, float (&values)[8]) {
    const int64_t to = rows[row].position(sum), channel = sum.column + at, left = t.dst_channels - channel;
    if (to < 0 || left <= 0) return;
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
  const int consumer = warp / 4 - 1, lane = static_cast<int>(threadIdx.x) % 32;
  ConvWgmmaRow* const rows = shared.rows + (warp - 4) * kWarpRows;
  if (lane < kWarpRows) rows[lane] = ConvWgmmaRow(t, args, (warp - 4) * kWarpRows + lane);
  __syncwarp();
  if (consumer == 1) begin_behind<Tile>(shared, ring, tiles);
  const auto release = [&](Turn<Tile::kStages> read) {
    ring.release(read);
    if (args.pair) ring.release(read, arch::cluster_rank() ^ 1);
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
    finish_wgmma_tile<Tile>(t, args, found, sums, shared.pieces, warp - 4, rows);
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
    ring.init(Tile::kReadingWarps << args.pair);
    tiles.init(Tile::kReadingWarps + 1);
  }
  __syncthreads();
  if (args.pair) sync_pair();
  const int warp = warp_id();
  // What the warpgroups had at launch, 168 each, in sum; the compiler holds all code to what it starts with. With 40,
  // the loading warps spill.
  if (warp < 4) {
    arch::give_registers<56>();
    if (warp == 0 && arch::elect_one()) load_wgmma_tiles<Tile>(t, maps, args, shared, ring, tiles);
    if (warp == 1) find_wgmma_tiles<typename Tile::Out>(t, args, tiles, shared.found);
  } else {
    arch::take_registers<224>();
    multiply_wgmma_tiles<Tile>(t, args, shared, ring, tiles, warp);
  }
  __syncwarp();
  if (args.pair) sync_pair();
}

template <class T, arch::Major kB, class Out = T>
void conv_wgmma_start(const ConvWgmmaLaunch& l, Stream stream) {
  const auto start = [&]<class Of>(Of*) {
    using Tile = std::conditional_t<std::is_same_v<T, Out>, Of, WgmmaInto<Of, Out>>;
    Launch where{l.blocks, Tile::kThreads, ConvWgmma<Tile>::shared_bytes()};
    if (l.args.pair) {
      const Launch pairs{l.blocks / 2 * 2, where.block, where.shared_bytes, 2};
      if (can_place<conv_wgmma_kernel<Tile>>(pairs)) where = pairs;
    }
    ConvWgmmaArgs args = l.args;
    args.pair = where.cluster > 1;
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
