"""LR-ASPP: a light head on MobileNetV3 that weights the channels of its map by a vector from global pooling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from atrousops.models.backbones import load_backbone, mobilenet_v3_large
from atrousops.models.base import Features, SegmentationModel, resize
from atrousops.nn import AtrousConv2d, conv_norm_relu


class LRASPPHead(nn.Module):
    """y = low(l) + up(high(f(x) sigmoid(g(average of x)))), f a 1x1 convolution with normalisation and ReLU.

    Features "out" (N, C, h, w), x, and "aux" (N, L, H/8, W/8), l -> (N, num_classes, H/8, W/8). The names of the
    parameters are torchvision's.

    Source: Howard et al., Searching for MobileNetV3 (2019), section 6.4, figure 10.
    """

    def __init__(self, low_channels: int, out_channels: int, num_classes: int, width: int = 128) -> None:
        super().__init__()
        self.cbr = conv_norm_relu(out_channels, width)
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), AtrousConv2d(out_channels, width, 1, bias=False), nn.Sigmoid()
        )
        self.low_classifier = AtrousConv2d(low_channels, num_classes, 1)
        self.high_classifier = AtrousConv2d(width, num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        low, out = features["aux"], features["out"]
        x = resize(self.cbr(out) * self.scale(out), low.shape[-2:])
        scores: Tensor = torch.add(self.low_classifier(low), self.high_classifier(x))
        return scores


def lraspp_mobilenet_v3_large(
    num_classes: int = 21, backbone_weights: Mapping[str, Tensor] | None = None, in_channels: int = 3
) -> SegmentationModel:
    """LR-ASPP on MobileNetV3-Large, 3.2 M parameters, with torchvision's layer names.

    | part | channels | stride |
    |---|---|---|
    | encoder to block 4 ("aux") | 40 | 8 |
    | encoder to block 16 ("out"), rate 2 from block 13 | 960 | 16 |
    | 1x1, weighted by a 1x1 of the average with a sigmoid | 128 | 16 |
    | bilinear; scores 1x1, + scores 1x1 of block 4 | num_classes | 8 |
    | bilinear to the input's size | num_classes | 1 |

    Release: torchvision's `lraspp_mobilenet_v3_large`, whose file `load_published` and `load_state_dict` read.

    Args:
        num_classes: K.
        backbone_weights: state dict of torchvision's classifier to start from.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: in_channels is below 1, or a weight is missing.

    Source: Howard et al., Searching for MobileNetV3 (2019), section 6.4, as in torchvision.
    """
    backbone = mobilenet_v3_large(16, in_channels)
    load_backbone(backbone, backbone_weights)
    return SegmentationModel(backbone, LRASPPHead(backbone.channels["aux"], backbone.channels["out"], num_classes))
