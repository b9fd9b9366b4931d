"""What the convolutions' kernels are told of their maps (N, C, *): strides in units, and how values are multiplied."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from atrousops.triton._common import channels_are_inner, interpreted


class Strides(NamedTuple):
    """Of a map, in units; unit 0 stands for channels that are not innermost."""

    unit: int
    batch: int
    channel: int
    axes: tuple[int, int, int]

    def arguments(self) -> tuple[int, ...]:
        return (self.batch, self.channel, *self.axes)


def strides_of(t: Tensor, channels: int, units: bool) -> Strides:
    """`channels` is how many a group has: what the unit must divide."""
    axes = [0] * (5 - t.dim()) + list(t.stride()[2:])
    unit = 0
    if units and t.stride(1) == 1 and channels_are_inner(t):
        unit = channels & -channels
        unit = min(unit, 16)
    scale = max(unit, 1)
    return Strides(unit, t.stride(0) // scale, t.stride(1), (axes[0] // scale, axes[1] // scale, axes[2] // scale))


def in_format(t: Tensor) -> Tensor:
    """Contiguous, or dense with channels innermost."""
    return t if channels_are_inner(t) else t.contiguous()


def small(channels: int) -> int:
    """A block of that many channels, for the interpreter."""
    return min(max(triton.next_power_of_2(channels), 16), 128)


def precision(tf32: bool) -> str:
    """How tl.dot multiplies float32."""
    return "tf32" if tf32 else "ieee"


def widened(t: Tensor) -> bool:
    """Whether 16 bits become 32 first: the interpreter multiplies the bits of bfloat16 as integers."""
    return interpreted() and t.dtype in (torch.bfloat16, torch.float16)
