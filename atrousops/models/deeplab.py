"""DeepLab v3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.backbones import (
    RESNETS,
    Encoder,
    encoder,
    load_backbone,
    mobilenet_v3_large,
    resnet,
)
from atrousops.models.base import Features, SegmentationModel
from atrousops.nn import ASPP, AtrousConv2d, conv_norm_relu
from atrousops.nn.sequence import run_layers


def rates_at(first: int, output_stride: int, reference: int) -> tuple[int, int, int]:
    """Rates of ASPP in the ratio 1 : 2 : 3; the first one is given for output stride `reference`."""
    rate = first * reference // output_stride
    return (rate, 2 * rate, 3 * rate)


class DeepLabV3Head(nn.Sequential):
    """ASPP, an optional 3x3 convolution, scores: features "out" (N, C, h, w) -> (N, num_classes, h, w)."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        rates: Sequence[int],
        width: int = 256,
        image_pooling: bool = True,
        last_3x3: bool = True,
    ) -> None:
        super().__init__(
            ASPP(in_channels, rates, width, image_pooling=image_pooling),
            *(conv_norm_relu(width, width, 3) if last_3x3 else ()),
            AtrousConv2d(width, num_classes, 1),
        )

    def forward(self, features: Features) -> Tensor:
        return run_layers(self.children(), features["out"])


class FCNHead(nn.Sequential):
    """The auxiliary classifier, also the head of an FCN on ResNet: a feature (N, C, h, w) -> (N, num_classes, h, w)."""

    def __init__(self, in_channels: int, num_classes: int, feature: str = "aux") -> None:
        width = in_channels // 4
        super().__init__(
            *conv_norm_relu(in_channels, width, 3), nn.Dropout(0.1), AtrousConv2d(width, num_classes, 1)
        )  # fmt: skip
        self.feature = feature

    def forward(self, features: Features) -> Tensor:
        return run_layers(self.children(), features[self.feature])


def _v3(
    backbone: Encoder,
    num_classes: int,
    rates: Sequence[int],
    aux: bool,
    weights: Mapping[str, Tensor] | None,
    align_corners: bool = False,
    **parts: bool,
) -> SegmentationModel:
    load_backbone(backbone, weights)
    head = DeepLabV3Head(backbone.channels["out"], num_classes, rates, **parts)
    second = FCNHead(backbone.channels["aux"], num_classes) if aux else None
    return SegmentationModel(backbone, head, second, align_corners)


def deeplabv3(
    num_classes: int = 21,
    backbone: str = "resnet101",
    output_stride: int = 16,
    rates: Sequence[int] | None = None,
    multi_grid: Sequence[int] | None = None,
    image_pooling: bool = True,
    aux: bool = False,
    backbone_weights: Mapping[str, Tensor] | None = None,
    last_3x3: bool = True,
    align_corners: bool = False,
    backbone_arguments: Mapping[str, Any] | None = None,
    in_channels: int = 3,
) -> SegmentationModel:
    """DeepLab v3 on any encoder; the parts tested in the paper's tables can be left out.

    | part | output at output_stride 16 (8, 32) |
    |---|---|
    | encoder, see `encoder` | 1/16 (1/8, 1/32) |
    | ASPP, rates 6 12 18 (12 24 36, 3 6 9), image pooling | same, 256 channels |
    | 3x3, 1x1, bilinear to the input's size | num_classes, 1 |

    The 3x3 convolution is torchvision's. The paper and its release on TensorFlow have none (last_3x3=False), and the
    release aligns corners.

    Release: with the defaults and aux=True this is torchvision's `deeplabv3_resnet101`, and `load_state_dict` accepts
    its state dict; `load_published("deeplabv3_resnet101_voc", FILE)` gives that network with its weights. The authors'
    release on TensorFlow cannot be loaded: its ResNets have the stride of a stage in the last block, and image pooling
    comes first in its ASPP.

    Args:
        num_classes: K.
        backbone: a name for `encoder`.
        output_stride: 8, 16 or 32. Weights are independent of it: a network can be trained at 16 and tested at 8.
        rates: of ASPP, instead of those above; with () only its 1x1 branch and image pooling remain.
        multi_grid: for a ResNet: factors of the rates of layer4's blocks, (1, 2, 4) in the paper, two for ResNet-18.
        image_pooling: whether ASPP has the image-level branch.
        aux: an auxiliary classifier on the features of stride 16, whose scores are "aux".
        backbone_weights: the `weights` of `encoder`.
        last_3x3: whether to have the 3x3 convolution after ASPP.
        align_corners: for the interpolation.
        backbone_arguments: further arguments of `encoder`, such as a multi-grid of another stage.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}, and "aux".

    Raises:
        ArgumentError: no such encoder, it has no multi-grid, a bad rate or output_stride, or a weight is missing.

    Source: Chen et al., Rethinking atrous convolution for semantic image segmentation (2017), tables 5 and 6.
    """
    form = dict(backbone_arguments or {})
    if multi_grid is not None:
        if backbone not in RESNETS:
            bad_value("deeplabv3", "multi_grid", f"be None unless backbone is one of {', '.join(RESNETS)}", multi_grid)
        form["multi_grid"] = multi_grid
    trunk = encoder(backbone, output_stride, in_channels=in_channels, **form)
    rates = rates_at(12, output_stride, reference=8) if rates is None else rates
    parts = {"image_pooling": image_pooling, "last_3x3": last_3x3}
    return _v3(trunk, num_classes, rates, aux, backbone_weights, align_corners, **parts)


def deeplabv3_resnet50(
    num_classes: int = 21,
    output_stride: int = 8,
    aux: bool = False,
    multi_grid: tuple[int, ...] | None = None,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
) -> SegmentationModel:
    """DeepLab v3 on ResNet-50, with torchvision's layer names.

    | part | output at output_stride 8 (16) | channels |
    |---|---|---|
    | conv1, maxpool | 1/4 | 64 |
    | layer1, layer2 | 1/4, 1/8 | 256, 512 |
    | layer3 | 1/8, rate 2 (1/16) | 1024 |
    | layer4 | 1/8, rate 4 (1/16, rate 2) | 2048 |
    | ASPP, rates 12 24 36 (6 12 18), image pooling | same | 256 |
    | 3x3, 1x1, bilinear to the input's size | 1 | num_classes |

    Release: torchvision's `deeplabv3_resnet50`. Its file has an auxiliary classifier: `load_published` reads it, and so
    does `load_state_dict` with aux=True. The authors' release on TensorFlow differs, see `deeplabv3`.

    Arguments, result, errors and source as `deeplabv3`; output_stride is 8 or 16, and aux is on layer3.
    """
    rates = rates_at(12, output_stride, reference=8)
    return _v3(resnet(50, output_stride, multi_grid, in_channels), num_classes, rates, aux, backbone_weights)


def deeplabv3_resnet101(
    num_classes: int = 21,
    output_stride: int = 8,
    aux: bool = False,
    multi_grid: tuple[int, ...] | None = None,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
) -> SegmentationModel:
    """DeepLab v3 on ResNet-101; stages, arguments and result as `deeplabv3_resnet50`, with 23 blocks in layer3."""
    rates = rates_at(12, output_stride, reference=8)
    return _v3(resnet(101, output_stride, multi_grid, in_channels), num_classes, rates, aux, backbone_weights)


def deeplabv3_mobilenet_v3_large(
    num_classes: int = 21,
    output_stride: int = 16,
    aux: bool = False,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
) -> SegmentationModel:
    """DeepLab v3 on MobileNetV3-Large, with torchvision's layer names.

    | part | output at output_stride 16 (8) | channels |
    |---|---|---|
    | 0-3 | 1/4 | 24 |
    | 4-6 | 1/8 | 40 |
    | 7-12 | 1/16 (1/8, rate 2) | 112 |
    | 13-16 | 1/16, rate 2 (1/8, rate 4) | 960 |
    | ASPP, rates 12 24 36 (24 48 72), image pooling | same | 256 |
    | 3x3, 1x1, bilinear to the input's size | 1 | num_classes |

    Release: torchvision's `deeplabv3_mobilenet_v3_large`. Its file has an auxiliary classifier: `load_published` reads
    it, and so does `load_state_dict` with aux=True.

    Arguments and result as `deeplabv3_resnet50`; the auxiliary classifier is on block 4.

    Source: Howard et al., Searching for MobileNetV3 (2019); Chen et al. (2017).
    """
    rates = rates_at(12, output_stride, reference=16)
    return _v3(mobilenet_v3_large(output_stride, in_channels), num_classes, rates, aux, backbone_weights)
