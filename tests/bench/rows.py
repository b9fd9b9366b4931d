"""Rows small enough for a test."""

from functools import partial

import torch

from atrousops import functional
from atrousops.bench.operators import PYTORCH, operator
from atrousops.bench.registry import Row


def make(size=6, channels=3):
    return torch.randn(1, channels, size, size), torch.randn(4, channels, 3, 3)


def broken(*inputs, **options):
    raise MemoryError("no memory")


def wrong(*inputs, **options):
    return functional.conv2d(*inputs, **options) + 1e-3


def row(
    case="right",
    functions=None,
    direction="forward",
    dtype="fp32",
    layout="nchw",
    needs=(),
    size=6,
    channels=3,
    **options,
):
    options = {"padding": 2, "dilation": 2, **options}
    prepare = operator("conv2d", partial(make, size, channels), functions=functions, **options)
    return Row("small", case, "for a test", dtype, layout, direction, prepare, needs=needs)


def wrong_row():
    return row("wrong", functions=(wrong, PYTORCH.conv2d))


def broken_row():
    return row("broken", functions=(functional.conv2d, broken))
