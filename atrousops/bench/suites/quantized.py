"""Convolutions of int8 and float8_e4m3fn numbers against PyTorch's convolution of the same numbers in 16 bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from atrousops.bench.operators import operator
from atrousops.bench.registry import Prepared, Row, Setting, expand
from atrousops.ops.conv_quantized import chosen, conv_quantized
from atrousops.reference.conv_quantized import quantize

DTYPES = {"int8": torch.int8, "e4m3": torch.float8_e4m3fn}
# Steps of the grid in a standard deviation. Its ends, 127 and 448 steps, are then four and seven deviations away.
_STEPS = {"int8": 32, "e4m3": 64}


class Layer(NamedTuple):
    """A 3x3 convolution of stride 1 with "same" padding, on the map of one image, or of a batch for servers."""

    name: str
    c: int
    k: int
    dilation: int
    size: int
    batch: int
    reason: str


LAYERS = (
    Layer("layer4 OS16, rate 2", 512, 512, 2, 33, 1, "ResNet's layer4: few positions"),
    Layer("layer4 OS8, rate 2", 512, 512, 2, 65, 1, "the same at output stride 8"),
    Layer("aspp OS16, rate 12", 2048, 256, 12, 33, 1, "long sums, dead taps"),
    Layer("aspp OS8, rate 12", 2048, 256, 12, 65, 8, "most work: what 8 bits are for"),
)
QUICK = ("aspp OS16, rate 12",)
_WAY = "bf16 nhwc"


def rows() -> Iterator[Row]:
    """Each layer in both dtypes, with activations in bf16, which ours rounds to 8 bits in the call."""
    for layer in LAYERS:
        for name in DTYPES:
            case = f"{layer.name}, {layer.c}->{layer.k}, {layer.size}x{layer.size}, batch {layer.batch}, {name}"
            quick = (f"{_WAY} forward",) if layer.name in QUICK else ()
            yield from expand("quantized", case, layer.reason, _prepare(layer, name), {_WAY: ("forward",)}, quick)


def _prepare(layer: Layer, name: str) -> Callable[[Setting], Prepared]:
    def make() -> tuple[Tensor, ...]:
        x, sx = _on_grid(torch.randn(layer.batch, layer.c, layer.size, layer.size), 1.0, name)
        deviation = 1 / math.sqrt(9 * layer.c)
        w, sw = _on_grid(deviation * torch.randn(layer.k, layer.c, 3, 3), deviation, name)
        return x, w, quantize(w, sw, DTYPES[name]), sx, sw.expand(layer.k).contiguous()

    around: dict[str, Any] = {"padding": layer.dilation, "dilation": layer.dilation}
    call = operator("conv2d", make, functions=(_ours, _theirs), uncast=(2, 3, 4), untouched=(1,), **around)

    def prepare(at: Setting) -> Prepared:
        def kernel() -> tuple[str, str]:
            # Neither size decides.
            x = at.tensor(torch.ones(1, layer.c, 1, 1))
            w8 = torch.ones(1, layer.c, 3, 3, device=at.device).to(DTYPES[name])
            return chosen(x, w8), "by the dtype, and by what the device can multiply"

        row = call(at)
        row.kernel = kernel
        return row

    return prepare


def _on_grid(values: Tensor, deviation: float, name: str) -> tuple[Tensor, Tensor]:
    """Values that 8 bits represent at a scale, and so does bf16, and that scale, a power of two."""
    scale = torch.tensor(2.0 ** round(math.log2(deviation / _STEPS[name])))
    return quantize(values, scale, DTYPES[name]).float() * scale, scale


def _ours(x: Tensor, w: Tensor, w8: Tensor, sx: Tensor, sw: Tensor, **around: Any) -> Tensor:
    return conv_quantized(x, w8, None, sx, sw, **around)


def _theirs(x: Tensor, w: Tensor, w8: Tensor, sx: Tensor, sw: Tensor, **around: Any) -> Tensor:
    return F.conv2d(x, w, **around)
