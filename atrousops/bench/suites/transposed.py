"""Transposed convolutions: FCN's upsampling, U-Net's 2x2, and bilinear ones with a group for each class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from atrousops.bench.operators import operator
from atrousops.bench.registry import Row, expand


class Layer(NamedTuple):
    """A transposed convolution of c to k channels."""

    name: str
    c: int
    k: int
    kernel: int
    stride: int
    padding: int
    size: int
    reason: str
    groups: int = 1
    batch: int = 1


LAYERS = (
    Layer("FCN-32s k64 s32", 21, 21, 64, 32, 16, 16, "the largest filter: 4096 taps in 1024 phases"),
    Layer("FCN-16s k32 s16", 21, 21, 32, 16, 8, 32, "256 phases of four taps"),
    Layer("FCN-8s k16 s8", 21, 21, 16, 8, 4, 64, "64 phases, odd channels"),
    Layer("FCN-8s fusion k4 s2", 21, 21, 4, 2, 1, 32, "small: overhead counts"),
    Layer("U-Net k2 s2, deep", 1024, 512, 2, 2, 0, 28, "all weight: four 1x1 products"),
    Layer("U-Net k2 s2", 256, 256, 2, 2, 0, 64, "one tap a phase: nothing but a GEMM"),
    Layer("U-Net k2 s2, shallow", 128, 64, 2, 2, 0, 196, "all output: bound by memory"),
    Layer("decoder k4 s2", 256, 256, 4, 2, 1, 32, "the commonest learned upsampling"),
    Layer("bilinear, 21 groups, k16 s8", 21, 21, 16, 8, 4, 64, "FCN's frozen upsampling, 22 MB written", groups=21),
    Layer("bilinear, 21 groups, k4 s2", 21, 21, 4, 2, 1, 128, "the same by two", groups=21),
    Layer("bilinear, 256 groups, k4 s2", 256, 256, 4, 2, 1, 64, "features, not scores", groups=256),
    Layer("U-Net k2 s2, training", 256, 128, 2, 2, 0, 64, "the same with a batch", batch=8),
)
WAYS = dict.fromkeys(("fp32 nchw", "fp32 nhwc", "bf16 nhwc"), ("forward", "input_grad", "weight_grad"))
QUICK = {
    "FCN-8s k16 s8": ("fp32 nchw forward", "fp32 nhwc forward"),
    "U-Net k2 s2": ("fp32 nchw forward", "fp32 nhwc forward", "fp32 nhwc input_grad", "bf16 nhwc forward"),
    "bilinear, 21 groups, k16 s8": ("fp32 nchw forward", "fp32 nhwc forward", "fp32 nchw input_grad"),
    "decoder k4 s2": ("fp32 nhwc forward",),
}


def rows() -> Iterator[Row]:
    """Each layer, forward and both gradients."""
    for layer in LAYERS:
        channels = "" if layer.groups > 1 else f", {layer.c}->{layer.k}"
        name = f"{layer.name}{channels}, {layer.size}x{layer.size}, batch {layer.batch}"
        yield from expand("transposed", name, layer.reason, _prepare(layer), WAYS, QUICK.get(layer.name, ()))


def _prepare(layer: Layer) -> Callable:
    def make() -> tuple[Tensor, Tensor]:
        x = torch.randn(layer.batch, layer.c, layer.size, layer.size)
        # A bilinear filter, or noise of unit gain.
        if layer.groups > 1:
            centre = (layer.kernel - 1) / 2
            tent = 1 - (torch.arange(layer.kernel) - centre).abs() / layer.stride
            return x, (tent[:, None] * tent).expand(layer.c, 1, layer.kernel, layer.kernel).contiguous()
        weight = torch.randn(layer.c, layer.k, layer.kernel, layer.kernel)
        return x, weight / (layer.c * (layer.kernel / layer.stride) ** 2) ** 0.5

    return operator("conv_transpose2d", make, stride=layer.stride, padding=layer.padding, groups=layer.groups)
