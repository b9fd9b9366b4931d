"""Depthwise convolutions, dilated ones first: bound by memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from atrousops.bench.operators import operator
from atrousops.bench.registry import Row, expand


class Layer(NamedTuple):
    """A depthwise convolution with "same" padding."""

    name: str
    channels: int
    size: int
    dilation: int
    reason: str
    kernel: int = 3
    stride: int = 1
    batch: int = 8


LAYERS = (
    Layer("Xception middle flow", 728, 33, 2, "16 blocks of v3+ at output stride 8 have three of these"),
    Layer("Xception exit flow", 1536, 33, 2, "v3+'s widest separable filter of the backbone"),
    Layer("v3+ ASPP, rate 6", 2048, 33, 6, "atrous separable branch: the widest input"),
    Layer("v3+ ASPP, rate 18", 2048, 33, 18, "the same where 60 % of the taps are dead"),
    Layer("v3+ decoder", 304, 129, 1, "no dilation, large map, channels that 32 does not divide"),
    Layer("MobileNetV3 last stage", 960, 33, 2, "5x5 with dilation", kernel=5),
    Layer("MobileNetV3 stride", 240, 65, 1, "stride 2", stride=2),
)
DIRECTIONS = ("forward", "input_grad", "weight_grad")
WAYS = {
    **dict.fromkeys(("fp32 nchw", "fp32 nhwc"), (*DIRECTIONS, "training")),
    **dict.fromkeys(("bf16 nchw", "bf16 nhwc"), DIRECTIONS),
}
QUICK = {
    "Xception middle flow": (
        "fp32 nchw forward", "fp32 nhwc forward", "fp32 nchw training", "fp32 nhwc training", "bf16 nhwc forward",
    ),
    "v3+ ASPP, rate 18": ("fp32 nchw forward", "fp32 nhwc forward"),
    "MobileNetV3 last stage": ("fp32 nhwc forward",),
}  # fmt: skip


def rows() -> Iterator[Row]:
    """Each layer at batch 1, and at a training batch."""
    for layer in LAYERS:
        shape = f"{layer.name}, {layer.channels}, {layer.size}x{layer.size}, rate {layer.dilation}"
        for batch in (1, layer.batch):
            quick = QUICK.get(layer.name, ()) if batch == 1 else ()
            prepare = _prepare(layer, batch)
            yield from expand("depthwise", f"{shape}, batch {batch}", layer.reason, prepare, WAYS, quick)


def _prepare(layer: Layer, batch: int) -> Callable:
    def make() -> tuple[Tensor, Tensor]:
        weight = torch.randn(layer.channels, 1, layer.kernel, layer.kernel) / layer.kernel
        return torch.randn(batch, layer.channels, layer.size, layer.size), weight

    padding = layer.dilation * (layer.kernel // 2)
    return operator(
        "conv2d", make, padding=padding, dilation=layer.dilation, stride=layer.stride, groups=layer.channels
    )  # fmt: skip
