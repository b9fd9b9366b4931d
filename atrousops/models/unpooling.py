"""VGG-16 with pooling codes, and a mirrored decoder that unpools with them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from atrousops.models.backbones import Backbone
from atrousops.models.base import init_relu
from atrousops.models.vgg import vgg16
from atrousops.nn import AtrousConv2d, AtrousConvTranspose2d, MaxPool2d, MaxUnpool2d
from atrousops.nn.sequence import run_layers

# Output widths of each convolution of a stage, the deepest stage first, in units of the encoder's first stage.
STAGES = ((8, 8, 8), (8, 8, 4), (4, 4, 2), (2, 1), (1, 1))


def coding_vgg16(width: int, in_channels: int = 3) -> Backbone:
    """VGG-16 with normalisation whose poolings also return one-byte codes of the positions; run it by `encode`.

    Sizes are rounded up, as in Caffe: no border pixels are lost, and images of any size can be pooled five times.
    """

    def pool(stage: int) -> MaxPool2d:
        return MaxPool2d(2, 2, ceil_mode=True, return_indices="codes")  # type: ignore[arg-type]

    return vgg16(width, pool, batch_norm=True, in_channels=in_channels)


def encode(backbone: Backbone, input: Tensor) -> tuple[Tensor, list[tuple[Tensor, Sequence[int]]]]:
    """The last map of `coding_vgg16`, and for each pooling its codes and the size of its input."""
    pooled: list[tuple[Tensor, Sequence[int]]] = []
    x, waiting = input, list[nn.Module]()
    for layer in backbone.values():
        if isinstance(layer, MaxPool2d):
            x, waiting = run_layers(waiting, x), []
            size = x.shape[-2:]
            x, codes = layer(x)
            pooled.append((codes, size))
        else:
            waiting.append(layer)
    return run_layers(waiting, x), pooled


class UnpoolingDecoder(nn.Module):
    """Five stages of unpooling and 3x3 layers with normalisation and ReLU, the mirror of VGG-16.

    (N, 8 width, h, w) and the poolings of `encode` -> (N, width, H, W).

    Args:
        width: channels of the encoder's first stage.
        layer: the kind of the 3x3 layers.
    """

    def __init__(self, width: int, layer: type[AtrousConv2d] | type[AtrousConvTranspose2d]) -> None:
        super().__init__()
        self.unpool = MaxUnpool2d(2, 2)
        self.stages = nn.ModuleList()
        channels = 8 * width
        for factors in STAGES:
            stage = nn.Sequential()
            for factor in factors:
                stage.append(layer(channels, factor * width, 3, padding=1))
                stage.append(nn.BatchNorm2d(factor * width))
                stage.append(nn.ReLU())
                channels = factor * width
            self.stages.append(stage)
        init_relu(self)

    def forward(self, input: Tensor, pooled: Sequence[tuple[Tensor, Sequence[int]]]) -> Tensor:
        x = input
        for stage, (codes, size) in zip(self.stages, reversed(pooled), strict=True):
            x = stage(self.unpool(x, codes, size))
        return x
