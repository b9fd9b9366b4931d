"""torchvision's FCN: a dilated ResNet, a 3x3 convolution and scores."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from atrousops.models.backbones import load_backbone, resnet
from atrousops.models.base import SegmentationModel
from atrousops.models.deeplab import FCNHead


def _fcn_resnet(
    depth: int, num_classes: int, output_stride: int, aux: bool, weights: Mapping[str, Tensor] | None, in_channels: int
) -> SegmentationModel:
    backbone = resnet(depth, output_stride, in_channels=in_channels)
    load_backbone(backbone, weights)
    head = FCNHead(backbone.channels["out"], num_classes, "out")
    return SegmentationModel(backbone, head, FCNHead(backbone.channels["aux"], num_classes) if aux else None)


def fcn_resnet50(
    num_classes: int = 21,
    output_stride: int = 8,
    aux: bool = False,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
) -> SegmentationModel:
    """FCN on ResNet-50, with torchvision's layer names.

    | part | output at output_stride 8 (16, 32) | channels |
    |---|---|---|
    | encoder, see `encoder` | 1/8, rates 2 and 4 (1/16, 1/32) | 2048 |
    | 3x3, dropout, scores 1x1 | same | 512, num_classes |
    | bilinear to the input's size | 1 | num_classes |

    Release: torchvision's `fcn_resnet50`. Its file has an auxiliary classifier: `load_published` reads it, and so does
    `load_state_dict` with aux=True.

    Args:
        num_classes: K.
        output_stride: 8, as in torchvision, 16 or 32.
        aux: an auxiliary classifier on layer3, whose scores are "aux".
        backbone_weights: state dict of torchvision's classifier to start from.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}, and "aux".

    Raises:
        ArgumentError: a bad output_stride, or a weight is missing.

    Source: torchvision; Long et al. (2015) on the ResNet of He et al. (2016).
    """
    return _fcn_resnet(50, num_classes, output_stride, aux, backbone_weights, in_channels)


def fcn_resnet101(
    num_classes: int = 21,
    output_stride: int = 8,
    aux: bool = False,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
) -> SegmentationModel:
    """FCN on ResNet-101; stages, arguments, result and source as `fcn_resnet50`."""
    return _fcn_resnet(101, num_classes, output_stride, aux, backbone_weights, in_channels)
