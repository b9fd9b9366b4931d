"""U-Net: a contracting and an expanding path, joined at every resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.backbones import encoder
from atrousops.models.base import check_images, crop, reflect
from atrousops.models.channels import check_channels
from atrousops.models.unet_encoder import UNetOnEncoder
from atrousops.nn import AtrousConv2d, AtrousConvTranspose2d, MaxPool2d

# Pixels lost on each side by unpadded convolutions.
_MARGIN = 92


class UNet(nn.Module):
    """U-Net; see `unet`."""

    def __init__(self, num_classes: int, width: int, padding: str, batch_norm: bool, in_channels: int = 3) -> None:
        super().__init__()
        check_channels("unet", in_channels)
        self.in_channels = in_channels
        if padding not in ("reflect", "zeros"):
            bad_value("unet", "padding", 'be "reflect" or "zeros"', repr(padding))
        if width < 1:
            bad_value("unet", "width", "be at least 1", width)
        self.valid = padding == "reflect"
        widths = [width * 2**level for level in range(5)]

        def double(inner: int, outer: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for channels in (inner, outer):
                layers.append(AtrousConv2d(channels, outer, 3, padding=0 if self.valid else 1, bias=not batch_norm))
                layers += [nn.BatchNorm2d(outer)] if batch_norm else []
                layers.append(nn.ReLU())
            return nn.Sequential(*layers)

        self.down = nn.ModuleList(double(i, o) for i, o in zip([in_channels, *widths], widths, strict=False))
        # Only at the end of the contracting path.
        self.dropout = nn.Dropout(0.5)
        self.pool = MaxPool2d(2, 2)
        self.up = nn.ModuleList(AtrousConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.join = nn.ModuleList(double(2 * w, w) for w in reversed(widths[:-1]))
        self.score = AtrousConv2d(width, num_classes, 1)
        self._init()

    def _init(self) -> None:
        """Normal weights with standard deviation sqrt(2 / N), where N is the number of inputs of one output value."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                # The windows of the up-convolutions do not overlap, so each pixel is in one window.
                inputs = layer.in_channels if isinstance(layer, nn.ConvTranspose2d) else layer.weight[0].numel()
                nn.init.normal_(layer.weight, std=math.sqrt(2 / inputs))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores of every pixel: (N, in_channels, H, W), any size -> {"out": (N, num_classes, H, W)}."""
        check_images(type(self).__name__, input, self.in_channels)
        size = input.shape[-2:]
        x = _padded(input, self.valid)
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            if level >= 3:
                x = self.dropout(x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            x = up(x)
            # Crop the skip to its centre, because it is larger.
            x = join(torch.cat([crop(skip, (skip.shape[-1] - x.shape[-1]) // 2, x.shape[-2:]), x], dim=1))
        return {"out": crop(self.score(x), 0, size)}


def _padded(input: Tensor, valid: bool) -> Tensor:
    """Pads to a size that all four poolings halve evenly: 16 n + 188 for unpadded layers, 16 n for padded ones."""
    margin = _MARGIN if valid else 0
    # 16 n + 188 pixels give 16 n + 4, and at least 20 are needed for a crop at every level.
    rest = 4 if valid else 0
    after = [margin + max(-(side - rest) % 16, 16 + rest - side) for side in input.shape[-2:]]
    return reflect(input, margin, after)


def unet(
    num_classes: int = 2,
    width: int = 64,
    padding: str = "reflect",
    batch_norm: bool = False,
    in_channels: int = 3,
    backbone: str | None = None,
    backbone_weights: Mapping[str, Tensor] | None = None,
) -> UNet | UNetOnEncoder:
    """U-Net: four poolings, four up-convolutions, and concatenation of the encoder's maps at each resolution.

    | part | channels | stride | side of a 388x388 image, mirrored to 572 |
    |---|---|---|---|
    | two 3x3; pooling | 64 | 1 | 568 |
    | two 3x3; pooling | 128 | 2 | 280 |
    | two 3x3; pooling | 256 | 4 | 136 |
    | two 3x3, dropout; pooling | 512 | 8 | 64 |
    | two 3x3, dropout | 1024 | 16 | 28 |
    | four times: up-convolution 2x2, concat with the encoder's cropped map, two 3x3 | 512 256 128 64 | 8 4 2 1 | 388 |
    | scores 1x1 | num_classes | 1 | 388 |

    With a `backbone` the contracting path is a classifier of torchvision or timm at output stride 32. The expanding
    path is five times an up-convolution 2x2 and two 3x3 with normalisation, of 4 w, 2 w, w, w / 2 and w / 4 channels;
    the first three are concatenated with the encoder's maps at strides 16, 8 and 4.

    Weights are initialised as in the paper, from a normal distribution of standard deviation sqrt(2 / n), where n is
    the number of inputs of a neuron; biases are zero.

    Release: the layers follow the paper; they were not compared with the authors' release.

    Args:
        num_classes: K.
        width: w, channels of the first level; they double from level to level.
        padding: "reflect": no layer pads and the image is mirrored 92 pixels deep, as in the paper. "zeros": every
            layer keeps the size, with the same weights.
        batch_norm: add normalisation after each 3x3 convolution; not in the paper.
        in_channels: channels of the image.
        backbone: a name for `encoder`; padding is then always "zeros", with normalisation.
        backbone_weights: state dict of that classifier to start from; its filters for RGB are adapted to in_channels.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: padding is neither, width or in_channels is below 1, no such backbone, backbone_weights without
            a backbone, or a weight is missing.

    Source: Ronneberger, Fischer, Brox, U-Net: convolutional networks for biomedical image segmentation (2015),
    section 2, figure 1.
    """
    if backbone is None:
        if backbone_weights is not None:
            bad_value("unet", "backbone_weights", "be None without a backbone", "a state dict")
        return UNet(num_classes, width, padding, batch_norm, in_channels)
    if width < 1:
        bad_value("unet", "width", "be at least 1", width)
    return UNetOnEncoder(encoder(backbone, 32, backbone_weights, in_channels), num_classes, width)
