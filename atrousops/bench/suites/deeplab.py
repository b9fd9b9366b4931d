"""Every dilated convolution of DeepLab v1 to v3+ and of the context networks, at training and inference batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from atrousops.bench.operators import operator
from atrousops.bench.registry import Row, expand


class Layer(NamedTuple):
    """A convolution of stride 1 with "same" padding, on the map of an inference picture and of a training crop."""

    name: str
    c: int
    k: int
    dilation: int
    reason: str
    inference: int
    crop: int = 0
    batch: int = 0
    kernel: int = 3


LAYERS = (
    Layer("v1 conv5, rate 2", 512, 512, 2, "VGG's last stage without its pooling: the commonest rate", 65, 41, 10),
    Layer("v1 LargeFOV, rate 12", 512, 1024, 12, "fc6 as a 3x3 filter of rate 12", 65, 41, 10),
    Layer("v1 fc6 4x4, rate 4", 512, 4096, 4, "even filter: asymmetric live regions", 41, kernel=4),
    Layer("front end fc6 7x7, rate 4", 512, 4096, 4, "largest filter there is: 49 taps", 66, kernel=7),
    Layer("v2 fc6, rate 6", 512, 1024, 6, "smallest rate of ASPP-L", 65, 41, 10),
    Layer("v2 fc6, rate 18", 512, 1024, 18, "rate near half of the crop's map", 65, 41, 10),
    Layer("v2 fc6, rate 24", 512, 1024, 24, "rate above half of the crop's map: 37 % of the taps live", 65, 41, 10),
    Layer("v2 scores, rate 12", 2048, 21, 12, "odd number of output channels", 65, 41, 10),
    Layer("v2 scores, rate 24", 2048, 21, 24, "odd channels and dead taps", 65, 41, 10),
    Layer("layer3 OS8, rate 2", 256, 256, 2, "ResNet's layer3 at output stride 8: 22 of its 101 layers", 65, 65, 8),
    Layer("layer4 OS16, rate 2", 512, 512, 2, "ResNet's layer4 at output stride 16: near PyTorch's peak", 33, 33, 16),
    Layer("layer4 OS8, rate 2", 512, 512, 2, "the same at output stride 8: oneDNN's best path, never to be lost", 65),
    Layer("layer4 OS8, rate 4", 512, 512, 4, "ResNet's layer4 at output stride 8", 65, 65, 8),
    Layer("layer4 OS8, rate 8", 512, 512, 8, "multi-grid's second unit", 65, 65, 8),
    Layer("layer4 OS8, rate 16", 512, 512, 16, "multi-grid's third unit: dead taps inside the backbone", 65, 65, 8),
    Layer("aspp OS16, rate 6", 2048, 256, 6, "v3's first branch", 33, 33, 16),
    Layer("aspp OS16, rate 12", 2048, 256, 12, "v3's second branch: oneDNN leaves AMX here", 33, 33, 16),
    Layer("aspp OS16, rate 18", 2048, 256, 18, "v3's third branch: 40 % of the taps live", 33, 33, 16),
    Layer("aspp OS8, rate 12", 2048, 256, 12, "torchvision's first branch", 65, 65, 8),
    Layer("aspp OS8, rate 24", 2048, 256, 24, "torchvision's second branch", 65, 65, 8),
    Layer("aspp OS8, rate 36", 2048, 256, 36, "torchvision's third branch: 40 % of the taps live", 65, 65, 8),
    *(
        Layer(f"context basic, rate {d}", 21, 21, d, "21 channels: no multiple of any vector", 66, 66, 8)
        for d in (2, 4, 8, 16)
    ),
    Layer("context large, rate 2", 42, 84, 2, "channels that only 2 divides", 66, 66, 8),
    Layer("context large, rate 4", 84, 168, 4, "channels that only 4 divides", 66, 66, 8),
    Layer("context large, rate 8", 168, 336, 8, "channels that 8 divides", 66, 66, 8),
    Layer("context large, rate 16", 336, 672, 16, "most work of the large module, many channels out", 66, 66, 8),
)

INFERENCE: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("fp32 nchw", "fp32 nhwc", "bf16 nchw", "bf16 nhwc", "tf32 nhwc"), ("forward",)
)
TRAINING = {way: ("forward", "input_grad", "weight_grad") for way in ("fp32 nchw", "fp32 nhwc", "bf16 nhwc")}
QUICK = {
    "aspp OS16, rate 12": ("fp32 nhwc forward",),
    "aspp OS16, rate 18": ("fp32 nchw forward", "fp32 nhwc forward", "bf16 nhwc forward"),
    "aspp OS8, rate 36": ("fp32 nhwc forward",),
    "layer4 OS8, rate 2": ("fp32 nhwc forward",),
    "layer4 OS16, rate 2": ("bf16 nhwc forward",),
    "context basic, rate 8": ("fp32 nchw forward",),
    "v2 scores, rate 24": ("fp32 nchw forward",),
}
# Gradients in the quick selection are of one image: a training batch takes seconds a call on a small machine.
QUICK_GRADIENTS = ("fp32 nhwc input_grad", "fp32 nhwc weight_grad")


def rows() -> Iterator[Row]:
    """Each layer at batch 1, forward; at its training batch, forward and both gradients."""
    for layer in LAYERS:
        shape = f"{layer.c}->{layer.k}, {{0}}x{{0}}, batch {{1}}"
        name = f"{layer.name}, {shape.format(layer.inference, 1)}"
        ways = dict(INFERENCE)
        quick: tuple[str, ...] = QUICK.get(layer.name, ())
        if layer.name == "aspp OS16, rate 18":
            ways["fp32 nhwc"] = ("forward", "input_grad", "weight_grad")
            quick += QUICK_GRADIENTS
        yield from expand("deeplab", name, layer.reason, _prepare(layer, 1, layer.inference), ways, quick)
        if layer.batch:
            name = f"{layer.name}, {shape.format(layer.crop, layer.batch)}"
            yield from expand("deeplab", name, layer.reason, _prepare(layer, layer.batch, layer.crop), TRAINING)


def _prepare(layer: Layer, batch: int, size: int) -> Callable:
    extent = layer.dilation * (layer.kernel - 1)

    def make() -> tuple[Tensor, Tensor]:
        weight = torch.randn(layer.k, layer.c, layer.kernel, layer.kernel)
        return torch.randn(batch, layer.c, size, size), weight / (layer.c * layer.kernel**2) ** 0.5

    # An even filter cannot keep the size with equal padding on both sides: it gains or loses a step.
    return operator("conv2d", make, padding=extent // 2, dilation=layer.dilation)
