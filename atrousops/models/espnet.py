"""ESPNet: convolutions factorised into a projection and parallel dilated ones with cumulatively summed outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atrousops.common.checks import bad_value
from atrousops.models.base import check_images, crop, whole
from atrousops.models.channels import check_channels
from atrousops.nn import AtrousConv2d, AtrousConvTranspose2d

_DILATIONS = (1, 2, 4, 8, 16)


class _Conv(nn.Module):
    """A convolution without bias, as `conv`, which keeps the size at stride 1."""

    def __init__(self, in_channels: int, out_channels: int, side: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = (side - 1) // 2 * dilation
        self.conv = AtrousConv2d(
            in_channels, out_channels, side, stride=stride, padding=padding, dilation=dilation, bias=False
        )

    def forward(self, input: Tensor) -> Tensor:
        return self.conv(input)


class _NormAct(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)
        self.act = nn.PReLU(channels)

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.bn(input))


class _ConvNormAct(_NormAct):
    def __init__(self, in_channels: int, out_channels: int, side: int, stride: int = 1) -> None:
        super().__init__(out_channels)
        padding = (side - 1) // 2
        self.conv = AtrousConv2d(in_channels, out_channels, side, stride=stride, padding=padding, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.conv(input))


class _Pyramid(nn.Module):
    """Reduce, split, transform, merge: concat(d1, d2, d2 + d4, d2 + d4 + d8, ...), d_r the projection at rate r.

    The cumulative sums remove the gridding artefacts of large rates ("hierarchical feature fusion").
    """

    def __init__(self, in_channels: int, out_channels: int, side: int, stride: int) -> None:
        super().__init__()
        inner = out_channels // len(_DILATIONS)
        if inner < 1:
            bad_value("espnet", "width", f"be at least {len(_DILATIONS)}", out_channels)
        self.c1 = _Conv(in_channels, inner, side, stride)
        widths = (out_channels - 4 * inner, *[inner] * 4)
        for rate, width in zip(_DILATIONS, widths, strict=True):
            self.add_module(f"d{rate}", _Conv(inner, width, 3, dilation=rate))

    def forward(self, input: Tensor) -> Tensor:
        reduced = self.c1(input)
        first, *others = (self.get_submodule(f"d{rate}")(reduced) for rate in _DILATIONS)
        sums = [first, others[0]]
        for other in others[1:]:
            sums.append(sums[-1] + other)
        return torch.cat(sums, dim=1)


class _Down(_Pyramid):
    """A block that halves the size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, 2)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.act = nn.PReLU(out_channels)

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.bn(super().forward(input)))


class _Block(_Pyramid):
    """A block that keeps the size, with a residual if the number of channels is the same."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, 1)
        self.residual = in_channels == out_channels
        self.bn = _NormAct(out_channels)

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return self.bn(input + output if self.residual else output)


class _Encoder(nn.Module):
    def __init__(self, num_classes: int, p: int, q: int, in_channels: int) -> None:
        super().__init__()
        self.level1 = _ConvNormAct(in_channels, 16, 3, 2)
        self.b1 = _NormAct(16 + in_channels)
        self.level2_0 = _Down(16 + in_channels, 64)
        self.level2 = nn.ModuleList(_Block(64, 64) for _ in range(p))
        self.b2 = _NormAct(128 + in_channels)
        self.level3_0 = _Down(128 + in_channels, 128)
        self.level3 = nn.ModuleList(_Block(128, 128) for _ in range(q))
        self.b3 = _NormAct(256)
        self.classifier = _Conv(256, num_classes, 1)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = _halve(input)
        first = self.b1(torch.cat([self.level1(input), half], dim=1))
        down = self.level2_0(first)
        second = self.b2(torch.cat([_run(self.level2, down), down, _halve(half)], dim=1))
        down = self.level3_0(second)
        third = self.b3(torch.cat([down, _run(self.level3, down)], dim=1))
        return first, second, self.classifier(third)


class ESPNet(nn.Module):
    """ESPNet; see `espnet`. Module names are those of the authors' release, so its weights load."""

    def __init__(self, num_classes: int, p: int, q: int, width: int, in_channels: int = 3) -> None:
        super().__init__()
        check_channels("espnet", in_channels)
        self.in_channels = in_channels
        self.encoder = _Encoder(width, p, q, in_channels)
        self.level3_C = _Conv(128 + in_channels, width, 1)
        self.br = nn.BatchNorm2d(width, eps=1e-3)
        self.conv = _ConvNormAct(16 + in_channels + width, width, 3)
        self.up_l3 = nn.Sequential(_double(width, width))
        self.combine_l2_l3 = nn.Sequential(_NormAct(2 * width), _Block(2 * width, width))
        self.up_l2 = nn.Sequential(_double(width, width), _NormAct(width))
        self.classifier = _double(width, num_classes)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores for every pixel.

        Args:
            input: images (N, in_channels, H, W). Sizes that are not multiples of 8 are padded with zeros, and the
                scores cropped.

        Returns:
            {"out": (N, num_classes, H, W)}.
        """
        check_images(type(self).__name__, input, self.in_channels)
        height, width = input.shape[-2:]
        x = F.pad(input, (0, whole(width, 8) - width, 0, whole(height, 8) - height))
        first, second, third = self.encoder(x)
        coarse = self.up_l3(self.br(third))
        middle = self.up_l2(self.combine_l2_l3(torch.cat([self.level3_C(second), coarse], dim=1)))
        scores = self.classifier(self.conv(torch.cat([middle, first], dim=1)))
        return {"out": crop(scores, 0, (height, width))}


def _double(in_channels: int, out_channels: int) -> AtrousConvTranspose2d:
    return AtrousConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False)


def _halve(input: Tensor) -> Tensor:
    return F.avg_pool2d(input, 3, stride=2, padding=1)


def _run(blocks: nn.ModuleList, input: Tensor) -> Tensor:
    for block in blocks:
        input = block(input)
    return input


def espnet(num_classes: int = 12, p: int = 2, q: int = 8, width: int | None = None, in_channels: int = 3) -> ESPNet:
    """ESPNet, 0.36 M parameters at p = 2, q = 8.

    | stage | blocks | channels | stride |
    |---|---|---|---|
    | 1 | 3x3 stride 2, concatenated with the image at half its size | 16 + 3 | 2 |
    | 2 | down, p pyramids of rates 1 2 4 8 16, concatenated with the image at a quarter | 64 + 64 + 3 | 4 |
    | 3 | down, q pyramids | 128 + 128 | 8 |
    | 4 | scores of 3, transposed 2x2, with scores of 2; pyramid | width | 4 |
    | 5 | transposed 2x2, with stage 1; 3x3 | width | 2 |
    | 6 | transposed 2x2 | num_classes | 1 |

    Release: https://github.com/sacmehta/ESPNet, by the authors, with the same layer names. `load_state_dict` accepts
    its weights, for BGR images and with a class for void. `load_published` converts them to RGB and removes that class.

    Args:
        num_classes: K.
        p, q: pyramids of stages 2 and 3.
        width: channels of the decoder, at least 5. If None, K as in the paper, but at least 5.
        in_channels: channels of the image.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: a width below 5, the number of rates before the scores.

    Source: Mehta et al., ESPNet: efficient spatial pyramid of dilated convolutions for semantic segmentation (2018),
    sections 3 and 4, figure 4.
    """
    return ESPNet(num_classes, p, q, max(num_classes, len(_DILATIONS)) if width is None else width, in_channels)
