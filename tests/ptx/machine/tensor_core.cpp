// ldmatrix, stmatrix and mma.sync, from the tables of the PTX manual: where element i of a lane's fragment lies in its
// matrix. Nothing here is shared with csrc/cuda/arch; a test holds the two against each other.
#include <cmath>

#include "machine.h"

namespace ptx {
namespace {

struct Place {
  int row, col;
};
// g: the group of four lanes, t: the lane in it.
Place a8(int g, int t, int i) { return {g + 8 * ((i >> 2) & 1), 4 * t + (i & 3) + 16 * (i >> 3)}; }
Place b8(int g, int t, int i) { return {4 * t + (i & 3) + 16 * (i >> 2), g}; }
Place a16(int g, int t, int i) { return {g + 8 * ((i >> 1) & 1), 2 * t + (i & 1) + 8 * (i >> 2)}; }
Place b16(int g, int t, int i) { return {2 * t + (i & 1) + 8 * (i >> 1), g}; }
Place a32(int g, int t, int i) { return {g + 8 * (i & 1), t + 4 * (i >> 1)}; }
Place b32(int g, int t, int i) { return {t + 4 * i, g}; }
Place accumulator(int g, int t, int i) { return {g + 8 * (i >> 1), 2 * t + (i & 1)}; }

// A sign, four bits of exponent and three of fraction; no infinity, and NaN has all of them set.
float e4m3_value(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 3 & 15), fraction = static_cast<int>(bits & 7);
  if (exponent == 15 && fraction == 7) return NAN;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                                   : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  return bits & 0x80 ? -size : size;
}

// Where the elements of a lane lie, and how many bits they have.
struct Fragments {
  Place (*a)(int, int, int), (*b)(int, int, int);
  int bits;

  int depth() const { return 256 / bits; }
  uint32_t element(const uint32_t* registers, int i) const {
    if (bits == 32) return registers[i];
    const int each = 32 / bits;
    return registers[i / each] >> bits * (i % each) & ((1u << bits) - 1);
  }
};
Fragments fragments_of(Operand type) {
  if (type == Operand::tf32) return {a32, b32, 32};
  if (type == Operand::s8 || type == Operand::e4m3) return {a8, b8, 8};
  return {a16, b16, 16};
}

}  // namespace

float operand_value(Operand type, uint32_t bits) {
  if (type == Operand::f16) return half_value(static_cast<uint16_t>(bits));
  if (type == Operand::bf16) return bf16_value(static_cast<uint16_t>(bits));
  if (type == Operand::s8) return static_cast<float>(static_cast<int8_t>(bits));
  if (type == Operand::e4m3) return e4m3_value(bits);
  return std::bit_cast<float>(bits & 0xffffe000u);
}

namespace {

// One m16n8k16 (k8 for tf32, k32 for 8 bits) over the fragments of a warp.
template <class Sum>
void mma_of_warp(Operand type, const uint32_t* const (&a)[32], const uint32_t* const (&b)[32], Sum* const (&c)[32]) {
  float left[16][32], right[32][8];
  const Fragments f = fragments_of(type);
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane >> 2, t = lane & 3;
    for (int i = 0; i < f.depth() / 2; ++i) {
      const Place p = f.a(g, t, i);
      left[p.row][p.col] = operand_value(type, f.element(a[lane], i));
    }
    for (int i = 0; i < f.depth() / 4; ++i) {
      const Place p = f.b(g, t, i);
      right[p.row][p.col] = operand_value(type, f.element(b[lane], i));
    }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const Place p = accumulator(lane >> 2, lane & 3, i);
      Sum sum = c[lane][i];
      for (int k = 0; k < f.depth(); ++k) sum += static_cast<Sum>(left[p.row][k] * right[k][p.col]);
      c[lane][i] = sum;
    }
}

template <class Sum>
void mma_together(Operand type, Sum (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
  struct Lane {
    Sum* c;
    const uint32_t *a, *b;
  } mine{c, a, b};
  whole_warp(
      "mma.sync", mine,
      [&](Lane* const(&lanes)[32]) {
        const uint32_t *left[32], *right[32];
        Sum* sums[32];
        for (int i = 0; i < 32; ++i) left[i] = lanes[i]->a, right[i] = lanes[i]->b, sums[i] = lanes[i]->c;
        mma_of_warp(type, left, right, sums);
      },
      line);
}

}  // namespace

void mma(Operand type, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
  mma_together(type, c, a, b, line);
}
void mma(Operand type, int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
  mma_together(type, c, a, b, line);
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
