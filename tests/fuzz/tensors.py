"""What all fuzzed calls share: values, layouts, and how a result is judged."""

from __future__ import annotations

import random

import torch
from oracle import assert_close
from shapes import channels_last
from torch import Tensor

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = ("contiguous", "channels_last", "strided", "offset")


def axes(r: random.Random, rank: int, low: int, high: int) -> tuple[int, ...]:
    """One number for each axis."""
    return tuple(r.randint(low, high) for _ in range(rank))


def eighths(*size: int) -> Tensor:
    """Multiples of 1/8 in [-1, 1] in fp64: exact in every dtype, and so are sums of their products in fp32."""
    return torch.randint(-8, 9, size).double() / 8


def arranged(t: Tensor, layout: str) -> Tensor:
    """The same values in another memory order: every second element, or a pointer that begins on no vector."""
    if layout == "channels_last":
        return channels_last(t)
    if layout == "strided":
        return torch.stack([t, t.new_full((), torch.nan).expand_as(t)], -1)[..., 0]
    if layout == "offset":
        off = t.new_empty(t.numel() + 1)[1:].view(t.shape)
        return off.copy_(t)
    return t.contiguous()


def check(name: str, ours: Tensor, exact: Tensor, theirs: Tensor) -> None:
    """The project's tolerance, with the name of what is wrong."""
    try:
        assert_close(ours, exact, theirs)
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from None


def same(name: str, ours: Tensor, right: Tensor) -> None:
    """Bit for bit, NaN equal to NaN, and 0 other than -0."""
    assert ours.shape == right.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(right.shape)}"
    assert ours.dtype == right.dtype, f"{name}: dtype {ours.dtype}, expected {right.dtype}"
    wrong = ~((ours == right) & (ours.signbit() == right.signbit()) | ours.isnan() & right.isnan())
    assert not wrong.any(), f"{name}: {int(wrong.sum())} of {wrong.numel()} differ, the first at {wrong.nonzero()[0]}"
