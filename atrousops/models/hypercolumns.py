"""Hypercolumns: a classifier on the features of several layers of a network at each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atrousops.common.checks import bad_value
from atrousops.models.base import check_images, resize
from atrousops.models.vgg import fully_convolutional, load_vgg16, vgg16
from atrousops.nn import AtrousConv2d, MaxPool2d

# The layers, and the side of the filter that scores each.
LAYERS = {"pool2": 1, "conv4": 1, "fc7": 1}


class Hypercolumns(nn.Module):
    """A linear classifier of hypercolumns; see `hypercolumns`."""

    def __init__(
        self, num_classes: int, grid: int, width: int, layers: Mapping[str, int], in_channels: int = 3
    ) -> None:
        super().__init__()
        if grid < 1:
            bad_value("hypercolumns", "grid", "be at least 1", grid)
        known = (*(f"{kind}{stage}" for stage in (1, 2, 3, 4) for kind in ("conv", "pool")), "fc7")
        if not layers or not set(layers) <= set(known) or any(side < 1 or side % 2 == 0 for side in layers.values()):
            bad_value(
                "hypercolumns", "layers", f"give odd sides of filters to some of {', '.join(known)}", dict(layers)
            )
        self.num_classes, self.grid = num_classes, grid
        keep = tuple(name for name in layers if name != "fc7")
        self.backbone = vgg16(width, lambda _: MaxPool2d(2, 2, ceil_mode=True), keep=keep, in_channels=in_channels)
        self.fc = fully_convolutional(8 * width, 64 * width, 7, dilation=1, padding=3)
        channels = {**self.backbone.channels, "fc7": 64 * width}
        self.scores = nn.ModuleDict(
            {
                name: AtrousConv2d(channels[name], grid**2 * num_classes, side, padding=side // 2)
                for name, side in layers.items()
            }
        )

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores of every pixel: (N, in_channels, H, W), any size -> {"out": (N, num_classes, H, W)}."""
        check_images(type(self).__name__, input, self.backbone.in_channels)
        features = self.backbone(input)
        if "fc7" in self.scores:
            features["fc7"] = self.fc(features["out"])
        # Scoring and interpolation are linear, so the small maps are scored before they are enlarged.
        x: Any = sum(resize(score(features[name]), input.shape[-2:]) for name, score in self.scores.items())
        return {"out": x if self.grid == 1 else self._blend(x)}

    def _blend(self, input: Tensor) -> Tensor:
        """Blends the classifiers of the grid at every pixel, with bilinear weights between their cells' centres."""
        height, width = input.shape[-2:]
        cells = torch.eye(self.grid**2, dtype=input.dtype, device=input.device).view(1, -1, self.grid, self.grid)
        share = F.interpolate(cells, size=(height, width), mode="bilinear", align_corners=False)
        return (input.view(-1, self.grid**2, self.num_classes, height, width) * share[:, :, None]).sum(1)


def hypercolumns(
    num_classes: int = 21,
    grid: int = 1,
    width: int = 64,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
    layers: Mapping[str, int] | None = None,
) -> Hypercolumns:
    """Hypercolumns: VGG-16's pool2, conv4 and fc7, interpolated bilinearly to each pixel, and a linear classifier.

    | part | channels | stride |
    |---|---|---|
    | conv1 to conv5, 2x2 pooling rounded up | 64 128 256 512 512 | 2 4 8 16 32 |
    | fc6 7x7, fc7 1x1, dropout | 4096 | 32 |
    | scores 1x1 of pool2, conv4 and fc7 | grid^2 num_classes | 4 8 32 |
    | bilinear to the input's size, sum | grid^2 num_classes | 1 |
    | bilinear blend of the grid's classifiers | num_classes | 1 |

    The paper classifies the pixels of a detected box, with a grid of 5x5 or 10x10 classifiers; for a whole image there
    is one. The authors' release for VGG-16 has layers {"pool3": 3, "pool4": 1, "fc7": 1} and a grid of 5 for 20
    classes. It scales pool3 and pool4 by 0.0027 and 0.063, factors that would be part of the weights here, and applies
    fc6 to a box pooled to 7x7 instead of a whole image. `load_published` does not read its weights.

    Args:
        num_classes: K.
        grid: number of classifiers along each axis, each for one part of the image.
        width: channels of the first stage; all others are in proportion.
        backbone_weights: state dict of torchvision's vgg16 to start from; the classifier becomes fc6 and fc7.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.
        layers: any of conv1, pool1 ... conv4, pool4 and fc7, each with the side of the filter for its scores; by
            default those above with 1x1.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: grid or width is below 1, an unknown layer, an even side, or a weight is missing.

    Source: Hariharan et al., Hypercolumns for object segmentation and fine-grained localization (2015), section 3.
    """
    network = Hypercolumns(num_classes, grid, width, layers or LAYERS, in_channels)
    load_vgg16(network.backbone, network.fc, backbone_weights)
    return network
