"""VGG-16 as an encoder: torchvision's layer names and weights, and fc6 and fc7 as convolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.backbones import Backbone, Encoder, encoder, load_backbone
from atrousops.models.base import init_relu
from atrousops.models.channels import check_channels
from atrousops.nn import AtrousConv2d, MaxPool2d

# Convolutions of each stage, and their width in units of the first one's.
_STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


def pool_2x2(number: int) -> nn.Module:
    """The pooling of VGG-16 after a stage."""
    return MaxPool2d(2, 2)


def vgg16(
    width: int = 64,
    pool: Callable[[int], nn.Module | None] = pool_2x2,
    dilations: tuple[int, int, int, int, int] = (1, 1, 1, 1, 1),
    valid: bool = False,
    batch_norm: bool = False,
    keep: tuple[str, ...] = (),
    in_channels: int = 3,
) -> Backbone:
    """The trunk of VGG-16.

    | feature | stage | channels at width 64 | stride with 2x2 pooling |
    |---|---|---|---|
    | conv1, pool1 | conv1 (2 layers), pool1 | 64 | 2 |
    | conv2, pool2 | conv2 (2), pool2 | 128 | 4 |
    | conv3, pool3 | conv3 (3), pool3 | 256 | 8 |
    | conv4, pool4 | conv4 (3), pool4 | 512 | 16 |
    | out | conv5 (3), pool5 | 512 | 32 |

    Layers have the same numbers as in torchvision's vgg16 (vgg16_bn), even if a pooling is missing.

    Args:
        width: channels of the first stage.
        pool: number of a stage, from 1 -> its pooling, or None.
        dilations: of the convolutions of each stage.
        valid: no padding in any layer.
        batch_norm: normalisation after each convolution.
        keep: features to return in addition to "out".
        in_channels: channels of the image.

    Raises:
        ArgumentError: width or in_channels below 1.
    """
    check_channels("vgg16", in_channels)
    if width < 1:
        bad_value("vgg16", "width", "be at least 1", width)
    layers: dict[str, nn.Module] = {}
    outputs = {}
    channels, number = in_channels, 0
    for stage, ((count, factor), dilation) in enumerate(zip(_STAGES, dilations, strict=True), start=1):
        for _ in range(count):
            padding = 0 if valid else dilation
            block = [AtrousConv2d(channels, width * factor, 3, padding=padding, dilation=dilation)]
            channels = width * factor
            for layer in (*block, *([nn.BatchNorm2d(channels)] if batch_norm else []), nn.ReLU()):
                layers[str(number)] = layer
                number += 1
        outputs[str(number - 1)] = f"conv{stage}"
        pooling = pool(stage)
        if pooling is not None:
            layers[str(number)] = pooling
            outputs[str(number)] = f"pool{stage}"
        number += 1
    outputs = {layer: name for layer, name in outputs.items() if name in keep}
    outputs[next(reversed(layers))] = "out"
    widths = {name: width * _STAGES[int(name[-1]) - 1][1] for name in keep}
    backbone = Backbone(layers, outputs, {**widths, "out": channels})
    init_relu(backbone)
    return backbone


def fully_convolutional(
    in_channels: int, channels: int, kernel_size: int, dilation: int, padding: int
) -> nn.Sequential:
    """fc6 and fc7 of VGG-16 as convolutions, each with ReLU and dropout: (N, C, h, w) -> (N, channels, h', w')."""
    layers = nn.Sequential(
        AtrousConv2d(in_channels, channels, kernel_size, padding=padding, dilation=dilation),
        nn.ReLU(),
        nn.Dropout(0.5),
        AtrousConv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Dropout(0.5),
    )
    init_relu(layers)
    return layers


def other_trunk(
    name: str, output_stride: int, in_channels: int, weights: Mapping[str, Tensor] | None
) -> Encoder | None:
    """The encoder that a network has in place of VGG-16, or None if it has VGG-16."""
    return None if name == "vgg16" else encoder(name, output_stride, weights, in_channels)


def load_vgg16(backbone: nn.Module, head: nn.Sequential | None, weights: Mapping[str, Tensor] | None) -> None:
    """Loads torchvision's state dict of vgg16 into the trunk and, if there is a head, into fc6 and fc7.

    Raises:
        ArgumentError: a weight of the trunk is missing.
    """
    load_backbone(backbone, weights)
    if head is not None:
        load_fully_connected(head, weights)


def load_fully_connected(head: nn.Sequential, weights: Mapping[str, Tensor] | None) -> None:
    """Loads torchvision's classifier of vgg16 into fc6 and fc7, the first two convolutions of `head`.

    A smaller fc6 or fc7 gets every n-th output and input channel and evenly spaced taps of the 7x7 filter, the
    subsampling of Chen et al., DeepLab (2015), section 4. A state dict without the classifier leaves them unchanged.

    Raises:
        ArgumentError: fc6 or fc7 is larger than the classifier's.
    """
    if weights is None or "classifier.0.weight" not in weights:
        return
    fc6, fc7 = [layer for layer in head if isinstance(layer, AtrousConv2d)][:2]
    _decimate(fc6, weights["classifier.0.weight"], weights["classifier.0.bias"], 7)
    _decimate(fc7, weights["classifier.3.weight"], weights["classifier.3.bias"], 1)


@torch.no_grad()
def _decimate(conv: AtrousConv2d, weight: Tensor, bias: Tensor, side: int) -> None:
    weight = weight.reshape(len(weight), -1, side, side)
    for axis, size in enumerate(conv.weight.shape):
        if size > weight.shape[axis]:
            bad_value("load_vgg16", "weights", f"have {size} entries or more on axis {axis}", tuple(weight.shape))
        spatial = axis >= 2
        last = weight.shape[axis] - 1
        if spatial:
            index = torch.linspace(0, last, size).round().long()
        else:
            index = torch.arange(size) * (last + 1) // size
        weight = weight.index_select(axis, index)
        if axis == 0:
            bias = bias.index_select(0, index)
    conv.weight.copy_(weight)
    assert conv.bias is not None
    conv.bias.copy_(bias)
