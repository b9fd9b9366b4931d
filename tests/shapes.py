"""Convolution problems for tests, each with the reason why it is here. All are small: the oracle runs in fp64."""

from dataclasses import dataclass

import torch


def channels_last(t: torch.Tensor) -> torch.Tensor:
    """The same values, stored as (N, *, C)."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


@dataclass(frozen=True)
class Shape:
    """Arguments of a convolution; `size`, `kernel` and the rest have one entry per spatial axis."""

    why: str
    n: int
    c: int
    k: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] | str = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    def __str__(self) -> str:
        return self.why


CONVOLUTIONS = (
    Shape("nine live regions, as in ASPP", 2, 8, 16, (17, 19), (3, 3), padding=(6, 6), dilation=(6, 6)),
    Shape("more than half dead: d > H / 2", 1, 16, 8, (13, 11), (3, 3), padding=(9, 9), dilation=(9, 9)),
    Shape("map smaller than the rate: only the centre tap lives",
          2, 5, 7, (4, 6), (3, 3), padding=(12, 12), dilation=(12, 12)),
    Shape("single pixel", 3, 4, 6, (1, 1), (3, 3), padding=(2, 2), dilation=(2, 2)),
    Shape("no tap lives in some outputs", 1, 3, 2, (4, 4), (2, 2), padding=(5, 5), dilation=(3, 3)),
    Shape("rate larger than the map on one axis", 1, 3, 21, (17, 3), (3, 3), padding=(5, 5), dilation=(5, 5)),
    Shape("one channel in, one out", 2, 1, 1, (7, 5), (3, 3), padding=(1, 1)),
    Shape("33 channels: no multiple of a vector", 1, 33, 21, (9, 8), (3, 3), padding=(2, 2), dilation=(2, 2)),
    Shape("context module: 21 channels", 1, 21, 21, (14, 14), (3, 3), padding=(4, 4), dilation=(4, 4)),
    Shape("prime sizes, stride and dilation without a common divisor",
          1, 3, 5, (23, 19), (3, 2), (2, 3), (3, 4), (3, 5)),
    Shape("stride 3, dilation 2, even kernel", 2, 4, 6, (16, 13), (4, 2), (3, 3), (2, 1), (2, 2)),
    Shape("stride larger than the kernel: inputs that nothing reads", 1, 4, 4, (11, 12), (2, 1), (3, 3)),
    Shape("'same' with an even reach: one more zero at the end",
          1, 4, 6, (9, 10), (2, 4), padding="same", dilation=(3, 1)),
    Shape("more output columns than one task's tile", 1, 8, 530, (5, 6), (3, 3), padding=(1, 1)),
    Shape("more rows than one task's tile", 1, 6, 9, (24, 27), (3, 3), padding=(3, 3), dilation=(3, 3)),
    Shape("long sums: several GEMMs into one result, runs of taps read in place",
          1, 600, 5, (7, 7), (3, 3), padding=(2, 2), dilation=(2, 2)),
    Shape("groups of a few channels", 2, 6, 9, (8, 9), (3, 3), padding=(2, 2), dilation=(2, 2), groups=3),
    Shape("groups of five channels: weight gradients without a GEMM",
          1, 15, 15, (8, 19), (3, 3), padding=(2, 2), dilation=(2, 2), groups=3),
    Shape("groups of many channels: weight gradients by a GEMM in channels_last alone",
          1, 24, 32, (8, 9), (3, 3), padding=(2, 2), dilation=(2, 2), groups=2),
    Shape("groups of more channels: by a GEMM in either format", 1, 34, 40, (5, 6), (3, 3), padding=(1, 1), groups=2),
    Shape("depthwise: 41 channels, vectors and a rest",
          2, 41, 41, (9, 37), (3, 3), padding=(2, 2), dilation=(2, 2), groups=41),
    Shape("depthwise: four vectors at once", 1, 70, 70, (6, 7), (3, 3), padding=(1, 1), groups=70),
    Shape("depthwise: 64 channels, whole vectors",
          1, 64, 64, (5, 7), (3, 3), padding=(2, 2), dilation=(2, 2), groups=64),
    Shape("depthwise, strided and dilated", 1, 12, 12, (15, 18), (3, 3), (2, 2), (3, 3), (3, 3), 12),
    Shape("depthwise with three outputs a channel", 2, 5, 15, (8, 9), (3, 3), padding=(1, 1), groups=5),
    Shape("empty batch", 0, 4, 6, (8, 9), (3, 3), padding=(1, 1)),
    Shape("1-D", 2, 6, 4, (31,), (5,), (2,), (4,), (3,)),
    Shape("1-D depthwise, 'same'", 1, 9, 9, (21,), (4,), (1,), "same", (3,), 9),
    Shape("3-D: regions on three axes", 1, 4, 6, (5, 7, 6), (3, 3, 3), (1, 1, 1), (2, 2, 2), (2, 2, 2)),
    Shape("3-D depthwise, strided", 2, 6, 6, (5, 6, 7), (2, 3, 3), (2, 1, 2), (1, 1, 1), (1, 2, 1), 6),
)  # fmt: skip


@dataclass(frozen=True)
class TransposedShape(Shape):
    """Arguments of a transposed convolution, c in and k out."""

    output_padding: tuple[int, ...] = (0, 0)


TRANSPOSED = (
    TransposedShape("four phases of one tap: one GEMM", 2, 8, 6, (7, 9), (2, 2), (2, 2)),
    TransposedShape("k16 s8: 64 phases of four taps", 1, 5, 7, (3, 4), (16, 16), (8, 8), (4, 4)),
    TransposedShape("bilinear: one channel a group", 1, 9, 9, (3, 4), (16, 16), (8, 8), (4, 4), groups=9),
    TransposedShape("phases without a tap: k < s", 1, 3, 4, (5, 4), (2, 1), (3, 3), output_padding=(2, 1)),
    TransposedShape("dilation and stride without a common divisor",
                    1, 4, 3, (6, 5), (3, 3), (2, 2), (1, 2), (3, 3), output_padding=(1, 1)),
    TransposedShape("dilation and stride with one: residues that nothing reaches",
                    1, 4, 3, (6, 5), (3, 2), (2, 4), (0, 1), (2, 2)),
    TransposedShape("stride 1, as a full correlation", 2, 5, 7, (6, 8), (3, 3), padding=(1, 1), dilation=(2, 2)),
    TransposedShape("output_padding beyond stride: the gradient has outputs to spare",
                    1, 4, 3, (6, 5), (2, 2), (1, 1), (0, 0), (3, 3), output_padding=(2, 1)),
    TransposedShape("groups of a few channels",
                    2, 6, 9, (5, 4), (3, 3), (2, 2), (1, 1), groups=3, output_padding=(1, 0)),
    TransposedShape("one channel in a group, two out", 1, 5, 10, (5, 4), (4, 4), (2, 2), (1, 1), groups=5),
    TransposedShape("single pixel", 1, 4, 6, (1, 1), (4, 4), (2, 2), (1, 1)),
    TransposedShape("empty batch", 0, 4, 6, (5, 5), (4, 4), (2, 2), (1, 1)),
    TransposedShape("1-D", 2, 6, 4, (11,), (5,), (3,), (1,), (2,), output_padding=(2,)),
    TransposedShape("3-D", 1, 4, 3, (3, 4, 3), (2, 3, 2), (2, 2, 1), (0, 1, 0), (1, 1, 2), output_padding=(1, 0, 1)),
)  # fmt: skip
