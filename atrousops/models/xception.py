"""Aligned Xception-65, the backbone of DeepLab v3+, with atrous separable convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.channels import check_channels
from atrousops.nn import AtrousConv2d


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Separable(nn.Module):
    """Depthwise 3x3 and pointwise convolution, each normalised, and each with a ReLU if `relu` is set."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int, relu: bool) -> None:
        super().__init__()
        self.conv_dw = AtrousConv2d(
            in_channels, in_channels, 3, stride, padding=dilation, dilation=dilation, groups=in_channels, bias=False
        )
        self.bn_dw = _norm(in_channels)
        self.conv_pw = AtrousConv2d(in_channels, out_channels, 1, bias=False)
        self.bn_pw = _norm(out_channels)
        self.act = nn.ReLU() if relu else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        x = self.act(self.bn_dw(self.conv_dw(input)))
        return self.act(self.bn_pw(self.conv_pw(x)))


class _Plain(nn.Module):
    """Convolution and normalisation."""

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int) -> None:
        super().__init__()
        self.conv = AtrousConv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)
        self.bn = _norm(out_channels)

    def forward(self, input: Tensor) -> Tensor:
        return self.bn(self.conv(input))


class _Block(nn.Module):
    """Three separable convolutions, the last one strided, plus a shortcut, except in the last block."""

    def __init__(
        self, in_channels: int, widths: tuple[int, int, int], stride: int, dilation: int, last: bool = False
    ) -> None:
        super().__init__()
        self.last = last
        reshaped = not last and (stride != 1 or in_channels != widths[-1])
        self.shortcut = _Plain(in_channels, widths[-1], 1, stride) if reshaped else None
        self.stack = nn.Sequential()
        for number, width in enumerate(widths, start=1):
            if not last:
                self.stack.add_module(f"act{number}", nn.ReLU())
            step = stride if number == 3 else 1
            self.stack.add_module(f"conv{number}", _Separable(in_channels, width, step, dilation, relu=last))
            in_channels = width

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and its second convolution's result."""
        x, second = input, input
        for name, layer in self.stack.named_children():
            x = layer(x)
            if name == "conv2":
                second = x
        if not self.last:
            x = x + (input if self.shortcut is None else self.shortcut(input))
        return x, second


class Xception65(nn.Module):
    """Aligned Xception with 65 layers; timm's `xception65` weights load.

    | feature | part | channels | stride at output_stride 32 | 16 | 8 |
    |---|---|---|---|---|---|
    |  | entry: two 3x3; block of three | 32 64; 128 | 2; 4 | 2; 4 | 2; 4 |
    | low | entry: second convolution of the next block | 256 | 4 | 4 | 4 |
    |  | entry: that block, and one more | 256, 728 | 8, 16 | 8, 16 | 8, 8 |
    |  | middle: 16 blocks of three | 728 | 16 | 16 | 8, rate 2 |
    |  | exit: block of three | 728 1024 1024 | 32 | 16 | 8, rate 2 |
    | out | exit: three more, with ReLUs, without shortcut | 1536 1536 2048 | 32 | 16, rate 2 | 8, rate 4 |

    Strided separable convolutions replace pooling; depthwise and pointwise ones have separate normalisations. As in the
    authors' release, ReLUs are before separable convolutions, and after both parts in the last block.

    Args:
        output_stride: 8, 16 or 32.
        width: channels of the first layer, a multiple of 4; all others are in proportion.
        in_channels: channels of the image.

    Raises:
        ArgumentError: output_stride is none of these, width is not a multiple of 4, or in_channels is below 1.

    Source: Chen et al., DeepLab v3+ (2018), section 3.2 and figure 4; Chollet, Xception (2017).
    """

    def __init__(self, output_stride: int = 16, width: int = 32, in_channels: int = 3) -> None:
        super().__init__()
        check_channels("Xception65", in_channels)
        self.in_channels = in_channels
        if output_stride not in (8, 16, 32):
            bad_value("Xception65", "output_stride", "be 8, 16 or 32", output_stride)
        if width < 4 or width % 4:
            bad_value("Xception65", "width", "be a multiple of 4", width)
        middle = 91 * width // 4
        widths = [(4 * width,) * 3, (8 * width,) * 3, (middle,) * 3]
        widths += [(middle,) * 3] * 16
        widths += [(middle, 32 * width, 32 * width), (48 * width, 48 * width, 64 * width)]
        self.channels = {"low": 8 * width, "out": 64 * width}
        self.stem = nn.Sequential(_Plain(in_channels, width, 3, 2), _Plain(width, 2 * width, 3, 1))
        self.blocks = nn.Sequential()
        channels, reached, dilation = 2 * width, 2, 1
        for index, three in enumerate(widths):
            stride = 2 if index in (0, 1, 2, 19) else 1
            kept = stride if reached * stride <= output_stride else 1
            self.blocks.append(_Block(channels, three, kept, dilation, last=index == 20))
            channels, reached, dilation = three[-1], reached * kept, dilation * stride // kept

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        x = input
        for layer in self.stem:
            x = layer(x).relu()
        features = {}
        for index, block in enumerate(self.blocks):
            x, second = block(x)
            if index == 1:
                features["low"] = second
        return {**features, "out": x}
