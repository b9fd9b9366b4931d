"""EfficientNet-Lite, a small classifier without squeeze-and-excitation, as an encoder with atrous convolutions."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.channels import check_channels
from atrousops.nn import AtrousConv2d


class Version(NamedTuple):
    """Factors of the channels and of the number of blocks per stage."""

    width: float
    depth: float


VERSIONS = {
    "efficientnet_lite0": Version(1.0, 1.0),
    "efficientnet_lite1": Version(1.0, 1.1),
    "efficientnet_lite2": Version(1.1, 1.2),
    "efficientnet_lite3": Version(1.2, 1.4),
    "efficientnet_lite4": Version(1.4, 1.8),
}


class Stage(NamedTuple):
    """Channels, kernel size, stride of the first block, number of blocks, channel expansion inside a block."""

    channels: int
    kernel: int
    stride: int
    blocks: int
    expansion: int


STAGES = (
    Stage(16, 3, 1, 1, 1),
    Stage(24, 3, 2, 2, 6),
    Stage(40, 5, 2, 2, 6),
    Stage(80, 3, 2, 3, 6),
    Stage(112, 5, 1, 3, 6),
    Stage(192, 5, 2, 4, 6),
    Stage(320, 3, 1, 1, 6),
)
STEM = 32
_OUTPUTS = {1: "low", 2: "mid", 4: "aux", 6: "out"}


def _channels(channels: int, factor: float) -> int:
    """The multiple of 8 nearest to the product, but not below 90 % of it."""
    wanted = channels * factor
    found = max(8, int(wanted + 4) // 8 * 8)
    return found + 8 if found < 0.9 * wanted else found


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _depthwise(channels: int, kernel: int, stride: int, rate: int) -> AtrousConv2d:
    padding = rate * (kernel // 2)
    return AtrousConv2d(channels, channels, kernel, stride, padding, rate, groups=channels, bias=False)


class _Separable(nn.Module):
    """The first stage's block: depthwise, then 1x1."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, rate: int) -> None:
        super().__init__()
        self.conv_dw = _depthwise(in_channels, kernel, stride, rate)
        self.bn1 = _norm(in_channels)
        self.act1 = nn.ReLU6()
        self.conv_pw = AtrousConv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = _norm(out_channels)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, input: Tensor) -> Tensor:
        x = self.bn2(self.conv_pw(self.act1(self.bn1(self.conv_dw(input)))))
        return x + input if self.shortcut else x


class _Inverted(nn.Module):
    """1x1 expansion, depthwise, 1x1 projection; added to the input if shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stage: Stage, stride: int, rate: int) -> None:
        super().__init__()
        inner = stage.expansion * in_channels
        self.conv_pw = AtrousConv2d(in_channels, inner, 1, bias=False)
        self.bn1 = _norm(inner)
        self.act1 = nn.ReLU6()
        self.conv_dw = _depthwise(inner, stage.kernel, stride, rate)
        self.bn2 = _norm(inner)
        self.act2 = nn.ReLU6()
        self.conv_pwl = AtrousConv2d(inner, out_channels, 1, bias=False)
        self.bn3 = _norm(out_channels)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, input: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv_pw(input)))
        x = self.act2(self.bn2(self.conv_dw(x)))
        x = self.bn3(self.conv_pwl(x))
        return x + input if self.shortcut else x


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite without its classifier; parameter names are those of timm's `tf_efficientnet_lite0` to `4`.

    | feature | part | channels of lite0 | stride at output_stride 32 | 16 | 8 |
    |---|---|---|---|---|---|
    | low | blocks.1 | 24 | 4 | 4 | 4 |
    | mid | blocks.2 | 40 | 8 | 8 | 8 |
    | aux | blocks.4 | 112 | 16 | 16 | 8, rate 2 |
    | out | blocks.6 | 320 | 32 | 16, rate 2 | 8, rate 4 |

    Layers have the same padding on both sides. The release uses TensorFlow's padding, which is equal for sides of 32
    n + 1 pixels; for other sizes its strided layers are shifted by one pixel to the right and down.

    Args:
        name: "efficientnet_lite0" to "efficientnet_lite4".
        output_stride: 8, 16 or 32.
        in_channels: C, channels of the image.

    Raises:
        ArgumentError: no such version, or in_channels is below 1.

    Source: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    """

    least = 1

    def __init__(self, name: str, output_stride: int = 32, in_channels: int = 3) -> None:
        super().__init__()
        check_channels("EfficientNetLite", in_channels)
        if name not in VERSIONS:
            bad_value("EfficientNetLite", "name", f"be one of {', '.join(VERSIONS)}", repr(name))
        version = VERSIONS[name]
        self.in_channels = in_channels
        self.conv_stem = AtrousConv2d(in_channels, STEM, 3, 2, 1, bias=False)
        self.bn1 = _norm(STEM)
        self.act1 = nn.ReLU6()
        self.blocks = nn.ModuleList()
        self.channels = {}
        width, stride, rate = STEM, 2, 1
        for number, stage in enumerate(STAGES):
            # The number of blocks of the first and last stage is not scaled.
            ends = number in (0, len(STAGES) - 1)
            blocks = stage.blocks if ends else math.ceil(stage.blocks * version.depth)
            out = _channels(stage.channels, version.width)
            layers = nn.Sequential()
            for block in range(blocks):
                step = stage.stride if block == 0 else 1
                lost = step > 1 and stride == output_stride
                step, following = (1, rate * step) if lost else (step, rate)
                layers.append(
                    _Separable(width, out, stage.kernel, step, rate)
                    if stage.expansion == 1
                    else _Inverted(width, out, stage, step, rate)
                )
                width, stride, rate = out, stride * step, following
            self.blocks.append(layers)
            if number in _OUTPUTS:
                self.channels[_OUTPUTS[number]] = width

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        x = self.act1(self.bn1(self.conv_stem(input)))
        features = {}
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number in _OUTPUTS:
                features[_OUTPUTS[number]] = x
        return features
