"""Convolutions of int8 and float8_e4m3fn."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from atrousops.ops.conv_quantized import conv_quantized, quantize
from atrousops.proof.cases import Case, Family, Make, name_of

_NARROW = (torch.int8, torch.float8_e4m3fn)
_WIDE = (torch.bfloat16, torch.float16, torch.float32)


class _Shape(NamedTuple):
    """A convolution of c to k channels with 3 x 3 weights, with a reason."""

    why: str
    n: int
    c: int
    k: int
    size: tuple[int, int]
    stride: int = 1
    dilation: int = 1
    groups: int = 1


_SMALL = (
    _Shape("whole tiles of channels, rate 2", 2, 64, 128, (9, 8), dilation=2),
    _Shape("no whole runs of channels", 2, 37, 21, (9, 8)),
    _Shape("stride 2, three groups", 2, 72, 48, (13, 11), stride=2, groups=3),
)
_LARGER = _Shape("many blocks", 2, 96, 160, (65, 63), dilation=4)
_TIMED = _Shape("", 4, 256, 256, (65, 65), dilation=2)


def family() -> Family:
    """Of all output dtypes, in both layouts."""
    small = [_case(s, dtype, last) for s in _SMALL for dtype in _WIDE for last in (False, True)]
    return Family(tuple(small), (_case(_LARGER, _WIDE[0], True),), (_case(_TIMED, _WIDE[0], True),))


def _case(shape: _Shape, dtype: torch.dtype, last: bool) -> Case:
    """With bias, residual and ReLU. Inputs and weights are whole numbers of -8 to 8: their sums need so few bits that
    every tensor core holds them, whatever it holds float8's in.
    """
    s, around = shape, (shape.stride, shape.dilation, shape.dilation, shape.groups)
    out = (s.n, s.k, *[(length - 1) // s.stride + 1 for length in s.size])

    def make(tensor: Make) -> list[Tensor]:
        x, w = tensor((s.n, s.c, *s.size)), tensor((s.k, s.c // s.groups, 3, 3))
        whole = [(4 * t).round().clamp(-8, 8) for t in (x, w)]
        # float8 counts as floating: its bits go as integers.
        weights = [whole[1].to(narrow).view(torch.int8) for narrow in _NARROW]
        return [whole[0] / 4, *weights, (2 + tensor((s.k,)).abs()).round() / 512, tensor((s.k,)), tensor(out)]

    def ours(x: Tensor, int8: Tensor, float8: Tensor, scale: Tensor, bias: Tensor, residual: Tensor) -> list[Tensor]:
        scales = torch.full((), 0.25, device=x.device), scale.float()
        weights = int8, float8.view(torch.float8_e4m3fn)
        return [conv_quantized(x, w, bias, *scales, *around, residual=residual, activation="relu") for w in weights]

    def theirs(x: Tensor, int8: Tensor, float8: Tensor, scale: Tensor, bias: Tensor, residual: Tensor) -> list[Tensor]:
        def of(weight: Tensor) -> Tensor:
            q = quantize(x, torch.full((), 0.25, device=x.device), weight.dtype).to(x.dtype)
            sums = F.conv2d(q, weight.to(x.dtype), None, *around)
            return ((sums * (scale / 4).view(-1, 1, 1)) + bias.view(-1, 1, 1) + residual).relu()

        return [of(int8), of(float8.view(torch.float8_e4m3fn))]

    sizes = f"{s.n}x{s.c}x{s.size[0]}x{s.size[1]} -> {s.k}"
    steps = f"kernel 3, stride {s.stride}, rate {s.dilation}, {s.groups} groups"
    layout = "channels_last" if last else "contiguous"
    why = f" ({s.why})" if s.why else ""
    what = f"conv_quantized {sizes}, {steps}, {name_of(dtype)}, {layout}{why}"
    return Case(what, make, ours, theirs, dtype, last)
