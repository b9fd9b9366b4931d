"""U-Net's expanding path on a classifier's features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atrousops.models.backbones import Encoder
from atrousops.models.base import check_images, crop, init_relu
from atrousops.nn import AtrousConv2d, AtrousConvTranspose2d, conv_norm_relu

_LEVELS = ("out", "aux", "mid", "low")


class UNetOnEncoder(nn.Module):
    """U-Net on an encoder; see `unet`."""

    def __init__(self, backbone: Encoder, num_classes: int, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        # At strides 16, 8, 4, 2 and 1; the last two have no skip.
        widths = [4 * width, 2 * width, width, max(1, width // 2), max(1, width // 4)]
        skips = [backbone.channels[name] for name in _LEVELS[1:]] + [0, 0]
        inner = [backbone.channels["out"], *widths[:-1]]
        self.up = nn.ModuleList(AtrousConvTranspose2d(i, o, 2, stride=2) for i, o in zip(inner, widths, strict=True))
        self.join = nn.ModuleList(
            nn.Sequential(conv_norm_relu(o + s, o, 3), conv_norm_relu(o, o, 3))
            for o, s in zip(widths, skips, strict=True)
        )
        init_relu(self.up)
        init_relu(self.join)
        self.score = AtrousConv2d(widths[-1], num_classes, 1)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores of every pixel: (N, in_channels, H, W), any size -> {"out": (N, num_classes, H, W)}."""
        check_images(type(self).__name__, input, self.backbone.in_channels)
        features = self.backbone(input)
        x = features["out"]
        skips = [features[name] for name in _LEVELS[1:]]
        for number, (up, join) in enumerate(zip(self.up, self.join, strict=True)):
            x = up(x)
            if number < len(skips):
                skip = skips[number]
                x = torch.cat([crop(x, 0, skip.shape[-2:]), skip], dim=1)
            x = join(x)
        return {"out": crop(self.score(x), 0, input.shape[-2:])}
