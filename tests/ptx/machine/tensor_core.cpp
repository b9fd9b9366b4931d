// ldmatrix, stmatrix and mma.sync, from the tables of the PTX manual: where element i of a lane's fragment lies in its
// matrix. Nothing here is shared with csrc/cuda/arch; a test holds the two against each other.
#include <cmath>
#include <limits>

#include "machine.h"

namespace ptx {
namespace {

struct Place {
  int row, col;
};
// g: the group of four lanes, t: the lane in it.
Place a16(int g, int t, int i) { return {g + 8 * ((i >> 1) & 1), 2 * t + (i & 1) + 8 * (i >> 2)}; }
Place b16(int g, int t, int i) { return {2 * t + (i & 1) + 8 * (i >> 1), g}; }
Place a32(int g, int t, int i) { return {g + 8 * (i & 1), t + 4 * (i >> 1)}; }
Place b32(int g, int t, int i) { return {t + 4 * i, g}; }
Place accumulator(int g, int t, int i) { return {g + 8 * (i >> 1), 2 * t + (i & 1)}; }

}  // namespace

float operand_value(Operand type, uint32_t bits) {
  if (type == Operand::f16) return half_value(static_cast<uint16_t>(bits));
  if (type == Operand::bf16) return bf16_value(static_cast<uint16_t>(bits));
  if (type == Operand::s8) return static_cast<float>(static_cast<int8_t>(bits));
  if (type == Operand::e4m3) {
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    if (exponent == 15 && fraction == 7) return std::numeric_limits<float>::quiet_NaN();
    const float size = exponent ? std::ldexp(8.0f + static_cast<float>(fraction), exponent - 10)
                                : std::ldexp(static_cast<float>(fraction), -9);
    return bits & 128 ? -size : size;
  }
  return std::bit_cast<float>(bits & 0xffffe000u);
}

// One m16n8k16 (k8 for tf32) over the fragments of a warp.
void mma_of_warp(Operand type, const uint32_t* const (&a)[32], const uint32_t* const (&b)[32], float* const (&c)[32]) {
  float left[16][16], right[16][8];
  const bool wide = type == Operand::tf32;
  const int depth = wide ? 8 : 16;
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane >> 2, t = lane & 3;
    for (int i = 0; i < (wide ? 4 : 8); ++i) {
      const Place p = wide ? a32(g, t, i) : a16(g, t, i);
      left[p.row][p.col] = operand_value(type, wide ? a[lane][i] : a[lane][i / 2] >> 16 * (i % 2) & 0xffff);
    }
    for (int i = 0; i < (wide ? 2 : 4); ++i) {
      const Place p = wide ? b32(g, t, i) : b16(g, t, i);
      right[p.row][p.col] = operand_value(type, wide ? b[lane][i] : b[lane][i / 2] >> 16 * (i % 2) & 0xffff);
    }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const Place p = accumulator(lane >> 2, lane & 3, i);
      float sum = c[lane][i];
      for (int k = 0; k < depth; ++k) sum += left[p.row][k] * right[k][p.col];
      c[lane][i] = sum;
    }
}

void mma(Operand type, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
  struct Lane {
    float* c;
    const uint32_t *a, *b;
  } mine{c, a, b};
  whole_warp(
      "mma.sync", mine,
      [&](Lane* const(&lanes)[32]) {
        const uint32_t *left[32], *right[32];
        float* sums[32];
        for (int i = 0; i < 32; ++i) left[i] = lanes[i]->a, right[i] = lanes[i]->b, sums[i] = lanes[i]->c;
        mma_of_warp(type, left, right, sums);
      },
      line);
}

void ldmatrix(uint32_t (&q)[4], uint64_t row, int count, bool transposed, int line) {
  struct Lane {
    uint64_t row;
    uint32_t* q;
  } mine{row, q};
  whole_warp(
      "ldmatrix", mine,
      [&](Lane* const(&lanes)[32]) {
        for (int j = 0; j < count; ++j) {
          uint16_t matrix[8][8];
          for (int r = 0; r < 8; ++r)
            std::memcpy(matrix[r], cluster_bytes(lanes[8 * j + r]->row, 16, 16, "ldmatrix", line), 16);
          for (int lane = 0; lane < 32; ++lane) {
            const int major = lane >> 2, minor = 2 * (lane & 3);
            const uint32_t low = transposed ? matrix[minor][major] : matrix[major][minor];
            const uint32_t high = transposed ? matrix[minor + 1][major] : matrix[major][minor + 1];
            lanes[lane]->q[j] = low | high << 16;
          }
        }
      },
      line);
}

void stmatrix(const uint32_t (&q)[4], uint64_t row, int line) {
  struct Lane {
    char* row;
    const uint32_t* q;
  } mine{shared_store(row, 16, line), q};
  whole_warp(
      "stmatrix", mine,
      [](Lane* const(&lanes)[32]) {
        for (int matrix = 0; matrix < 4; ++matrix)
          for (int r = 0; r < 8; ++r)
            for (int col = 0; col < 8; ++col) {
              const uint32_t word = lanes[4 * r + col / 2]->q[matrix];
              store<uint16_t>(lanes[8 * matrix + r]->row + 2 * col, static_cast<uint16_t>(word >> 16 * (col % 2)));
            }
      },
      line);
}

}  // namespace ptx
