"""DeepLab v3+."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.backbones import (
    Encoder,
    encoder,
    load_backbone,
    mobilenet_v3_large,
    resnet,
)
from atrousops.models.base import Features, SegmentationModel, resize
from atrousops.models.deeplab import rates_at
from atrousops.models.xception import Xception65
from atrousops.nn import ASPP, AtrousConv2d, conv_norm_relu


class DeepLabV3PlusHead(nn.Module):
    """ASPP on the deepest features, concatenation with low-level features, two convolutions, scores.

    Features "out" (N, out_channels, h, w) and "low" (N, low_channels, H/4, W/4) -> (N, num_classes, H/4, W/4).

    Args:
        separable: whether the decoder's 3x3 convolutions are separable.
        separable_aspp: whether those of ASPP are; as the decoder's, if None.
        align_corners: of the interpolation to the size of the low-level features.
        form: "paper", or "smp", as in segmentation_models_pytorch: one of the two convolutions is before the
            interpolation, and separable ones have no normalisation between their parts.
    """

    def __init__(
        self,
        out_channels: int,
        low_channels: int,
        num_classes: int,
        rates: Sequence[int],
        width: int = 256,
        low_width: int = 48,
        dropout: float = 0.1,
        separable: bool = True,
        separable_aspp: bool | None = None,
        align_corners: bool = False,
        form: str = "paper",
    ) -> None:
        super().__init__()
        if form not in ("paper", "smp"):
            bad_value("DeepLabV3PlusHead", "form", 'be "paper" or "smp"', repr(form))
        self.align_corners = align_corners
        pyramid = separable if separable_aspp is None else separable_aspp
        paper = form == "paper"
        self.aspp = ASPP(out_channels, rates, width, separable=pyramid, dropout=dropout, between=paper)

        def block(inner: int) -> nn.Sequential:
            return conv_norm_relu(inner, width, 3, separable=separable, between=paper)

        self.before: nn.Module = nn.Identity() if paper else block(width)
        self.low = conv_norm_relu(low_channels, low_width)
        self.decoder = nn.Sequential(block(width + low_width), *([block(width)] if paper else []))
        self.scores = AtrousConv2d(width, num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        low = self.low(features["low"])
        x = resize(self.before(self.aspp(features["out"])), low.shape[-2:], self.align_corners)
        return self.scores(self.decoder(torch.cat([x, low], dim=1)))


def _v3plus(
    backbone: Encoder | Xception65,
    num_classes: int,
    output_stride: int,
    weights: Mapping[str, Tensor] | None,
    separable: bool = True,
    separable_aspp: bool | None = None,
    align_corners: bool = False,
    rates: Sequence[int] | None = None,
    form: str = "paper",
    width: int = 256,
    low_width: int = 48,
) -> SegmentationModel:
    load_backbone(backbone, weights)
    channels = backbone.channels
    head = DeepLabV3PlusHead(
        channels["out"],
        channels["low"],
        num_classes,
        rates_at(6, output_stride, reference=16) if rates is None else rates,
        width,
        low_width,
        separable=separable,
        separable_aspp=separable_aspp,
        align_corners=align_corners,
        form=form,
    )
    return SegmentationModel(backbone, head, align_corners=align_corners)


def deeplabv3plus(
    num_classes: int = 21,
    backbone: str = "resnet101",
    output_stride: int = 16,
    backbone_weights: Mapping[str, Tensor] | None = None,
    separable: bool = True,
    separable_aspp: bool | None = None,
    align_corners: bool = False,
    backbone_arguments: Mapping[str, Any] | None = None,
    in_channels: int = 3,
    rates: Sequence[int] | None = None,
    form: str = "paper",
    width: int = 256,
    low_width: int = 48,
) -> SegmentationModel:
    """DeepLab v3+ on any encoder of `encoder`: stages, arguments and result as `deeplabv3plus_resnet50`.

    output_stride may also be 32, with half the rates of 16.

    Releases: two other implementations equal this network with other arguments. jfzhang95's pytorch-deeplab-xception
    on a ResNet has separable=False, align_corners=True and a multi-grid (1, 2, 4). DeepLabV3Plus of
    segmentation_models_pytorch on a ResNet of torchvision has form="smp", rates=(12, 24, 36), align_corners=True and
    backbone_arguments={"full_rate": True}; results are the same for images of 16 n pixels. The authors' release on
    TensorFlow is `deeplabv3plus_xception65`.

    Args:
        separable: whether the decoder's 3x3 convolutions are separable.
        separable_aspp: whether those of ASPP are; as the decoder's, if None.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.
        align_corners: of both interpolations; True in the authors' release.
        backbone_arguments: further arguments of `encoder`.
        rates: of ASPP, instead of those of the output stride.
        form: of the decoder, "paper" or "smp"; see `DeepLabV3PlusHead`.
        width: channels of ASPP's branches and of the decoder.
        low_width: channels that the low-level features are reduced to.

    Raises:
        ArgumentError: no such encoder or form, bad backbone_arguments, rates or output_stride, or a weight is missing.
    """
    trunk = encoder(backbone, output_stride, in_channels=in_channels, **(backbone_arguments or {}))
    decoder = (separable, separable_aspp, align_corners, rates, form, width, low_width)
    return _v3plus(trunk, num_classes, output_stride, backbone_weights, *decoder)


def deeplabv3plus_resnet50(
    num_classes: int = 21,
    output_stride: int = 16,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
) -> SegmentationModel:
    """DeepLab v3+ on ResNet-50.

    | part | output at output_stride 16 (8) | channels |
    |---|---|---|
    | layer1 ("low") -> 1x1 | 1/4 | 256 -> 48 |
    | layer4 ("out") | 1/16, rate 2 (1/8, rate 4) | 2048 |
    | atrous separable ASPP, rates 6 12 18 (12 24 36), image pooling | same | 256 |
    | bilinear, concatenated with low, two separable 3x3 | 1/4 | 304 -> 256 |
    | 1x1, bilinear to the input's size | 1 | num_classes |

    Release: none; this is the paper's head on torchvision's ResNet. See `deeplabv3plus` for other implementations on a
    ResNet, and `deeplabv3plus_xception65` for the authors' release.

    Args:
        num_classes: K.
        output_stride: 8 or 16.
        backbone_weights: state dict of torchvision's classifier to start from.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: output_stride is neither 8 nor 16, or a weight is missing.

    Source: Chen et al., Encoder-decoder with atrous separable convolution for semantic image segmentation (2018).
    """
    return _v3plus(resnet(50, output_stride, in_channels=in_channels), num_classes, output_stride, backbone_weights)


def deeplabv3plus_resnet101(
    num_classes: int = 21,
    output_stride: int = 16,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
) -> SegmentationModel:
    """DeepLab v3+ on ResNet-101; stages, arguments and result as `deeplabv3plus_resnet50`."""
    return _v3plus(resnet(101, output_stride, in_channels=in_channels), num_classes, output_stride, backbone_weights)


def deeplabv3plus_mobilenet_v3_large(
    num_classes: int = 21,
    output_stride: int = 16,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
) -> SegmentationModel:
    """DeepLab v3+ on MobileNetV3-Large: low-level features of 24 channels from block 3, 960 from block 16.

    Release: none; this is the paper's head on torchvision's MobileNetV3.

    Stages of the backbone as `deeplabv3_mobilenet_v3_large`, decoder, arguments and result as `deeplabv3plus_resnet50`.
    """
    return _v3plus(mobilenet_v3_large(output_stride, in_channels), num_classes, output_stride, backbone_weights)


def deeplabv3plus_xception65(
    num_classes: int = 21,
    output_stride: int = 16,
    width: int = 32,
    backbone_weights: Mapping[str, Tensor] | None = None,
    separable: bool = True,
    separable_aspp: bool | None = None,
    align_corners: bool = False,
    in_channels: int = 3,
) -> SegmentationModel:
    """DeepLab v3+ on aligned Xception-65: low-level features of 256 channels, 2048 at the end; see `Xception65`.

    Decoder, arguments and result as `deeplabv3plus_resnet50`; width is the number of channels of the first layer, a
    multiple of 4; the backbone's other layers scale with it; backbone_weights is a state dict of timm's xception65.

    Release: TensorFlow's deeplab with xception_65. With align_corners=True the layers are the same; the release trains
    on images of 16 n + 1 pixels. Its low-level features are those of `Xception65`. Image pooling comes first in its
    ASPP and last here, so `load_published` reorders the filters of the following convolution.
    """
    trunk = Xception65(output_stride, width, in_channels)
    return _v3plus(trunk, num_classes, output_stride, backbone_weights, separable, separable_aspp, align_corners)


def deeplabv3plus_efficientnet_lite2(
    num_classes: int = 2, output_stride: int = 16, in_channels: int = 3
) -> SegmentationModel:
    """A compact DeepLab v3+ of 4.7 M parameters: EfficientNet-Lite2 and a head of 128 channels.

    | part | output at output_stride 16 (8) | channels |
    |---|---|---|
    | stem, blocks.0 | 1/2 | 32, 16 |
    | blocks.1 ("low") -> 1x1 | 1/4 | 24 -> 32 |
    | blocks.2, blocks.3 and 4 | 1/8, 1/16 (1/8) | 48, 88 and 120 |
    | blocks.5, blocks.6 ("out") | 1/16, rate 2 (1/8, rate 4) | 208, 352 |
    | atrous separable ASPP, rates 6 12 18 (12 24 36), image pooling | same | 128 |
    | bilinear, concatenated with low, two separable 3x3 | 1/4 | 160 -> 128 |
    | 1x1, bilinear to the input's size | 1 | num_classes |

    Release: this package's. `load("deeplabv3plus_efficientnet_lite2_voc_person")` gives it with weights trained on
    Pascal VOC's class person.

    Args:
        num_classes: K.
        output_stride: 8, 16 or 32.
        in_channels: channels of the image.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: output_stride is none of these.

    Source: Chen et al. (2018); https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    """
    backbone = encoder("efficientnet_lite2", output_stride, in_channels=in_channels)
    return _v3plus(backbone, num_classes, output_stride, None, width=128, low_width=32)
