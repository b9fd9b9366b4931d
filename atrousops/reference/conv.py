from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from atrousops.common.conv_arguments import computed_in
from atrousops.common.values import connected, is_autocast
from atrousops.dispatch.geometry import Axis, AxisTap, axis_phases

Slices = tuple[slice, ...]


def taps_of(axes: Sequence[Axis]) -> Iterator[tuple[tuple[int, ...], Slices, Slices]]:
    """Every live tap: kernel coordinate, the box of outputs it reaches, and the box of inputs it reads there."""
    for taps in product(*(axis_phases("forward", a)[0].taps for a in axes)):
        if all(t.begin < t.end for t in taps):
            outputs = tuple(slice(t.begin, t.end) for t in taps)
            yield tuple(t.r for t in taps), outputs, tuple(_inputs(a, t) for a, t in zip(axes, taps))


def _inputs(axis: Axis, tap: AxisTap) -> slice:
    first = axis.stride * tap.begin + tap.delta
    return slice(first, axis.stride * (tap.end - 1) + tap.delta + 1, axis.stride)


def as_autocast(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Under autocast, tensors are cast as those of PyTorch's convolutions, and nothing is cast inside."""

    @functools.wraps(convolution)
    def run(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        if not is_autocast(input.device.type):
            return convolution(input, weight, bias, *rest)
        lower = [t if t is None else t.to(computed_in(t)) for t in (input, weight, bias)]
        with torch.autocast(input.device.type, enabled=False):
            return convolution(*lower, *rest)

    return run


@as_autocast
def conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """y[n, k, o] = bias[k] + sum over taps r, channels c of weight[k, c, r] * x[n, c, stride o + dilation r - padding].

    Only taps inside the input are computed; 16-bit dtypes are summed in float32. `padding` may hold low sides, then
    high sides.
    """
    rank = len(stride)
    sizes = zip(input.shape[2:], weight.shape[2:], stride, dilation, padding[:rank], padding[-rank:])
    axes = [Axis(i, (i + lo + hi - d * (k - 1) - 1) // s + 1, k, s, d, lo, hi) for i, k, s, d, lo, hi in sizes]
    x = _wide(input).unflatten(1, (groups, weight.shape[1]))
    w = _wide(weight).unflatten(0, (groups, weight.shape[0] // groups))
    y: Any = connected(x.new_zeros(input.shape[0], groups, w.shape[1], *(a.output for a in axes)), x, w)
    for r, outputs, inputs in taps_of(axes):
        y[tuple([..., *outputs])] += torch.einsum("ngc...,gkc->ngk...", x[tuple([..., *inputs])], w[tuple([..., *r])])
    return _with_bias(y.flatten(1, 2), bias).to(input.dtype)


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + _wide(bias).view(-1, *(1,) * (y.dim() - 2))
