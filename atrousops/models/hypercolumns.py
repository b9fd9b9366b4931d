"""Hypercolumns: a classifier on all that a network has to say above a pixel, from edges to objects."""

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

# What is above a pixel, and the side of the filter that scores it.
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
        # Scoring and interpolating are linear, so that the small maps may be scored before they are enlarged.
        x: Any = sum(resize(score(features[name]), input.shape[-2:]) for name, score in self.scores.items())
        return {"out": x if self.grid == 1 else self._blend(x)}

    def _blend(self, input: Tensor) -> Tensor:
        """Every pixel weighs the classifiers of the grid by how near their cells' centres are, bilinearly."""
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
    """Hypercolumns: VGG-16's pool2, conv4 and fc7 above each pixel, interpolated bilinearly, and a linear classifier.

    | part | channels | stride |
    |---|---|---|
    | conv1 to conv5, 2x2 pooling rounded up | 64 128 256 512 512 | 2 4 8 16 32 |
    | fc6 7x7, fc7 1x1, dropout | 4096 | 32 |
    | scores 1x1 of pool2, conv4 and fc7 | grid^2 num_classes | 4 8 32 |
    | bilinear to the input's size, sum | grid^2 num_classes | 1 |
    | bilinear blend of the grid's classifiers | num_classes | 1 |

    The paper classifies pixels of a detected box, on a grid of 5x5 or 10x10 classifiers; a whole image has one. The
    authors' release for VGG-16 has layers {"pool3": 3, "pool4": 1, "fc7": 1} and a grid of 5 for 20 classes, pool3 and
    pool4 times 0.0027 and 0.063, which belong into the weights here, and fc6 on a box pooled to 7x7, where a whole
    image is seen here. `load_published` does not read its weights.

    Args:
        num_classes: K.
        grid: classifiers along each axis of the image, each for its part of it.
        width: channels of the first stage; all others are in proportion.
        backbone_weights: state dict of torchvision's vgg16 to start from; the classifier becomes fc6 and fc7.
        in_channels: of the image; filters for RGB are summed (1) or cycled to it, see `channels.adapt`.
        layers: conv1, pool1 ... conv4, pool4 and fc7, as many as one likes, each with the side of its scores'
            filter; those above, 1x1, if None.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: grid or width is below 1, another layer or an even side, or a weight is missing.

    Source: Hariharan et al., Hypercolumns for object segmentation and fine-grained localization (2015), section 3.
    """
    network = Hypercolumns(num_classes, grid, width, layers or LAYERS, in_channels)
    load_vgg16(network.backbone, network.fc, backbone_weights)
    return network
