"""DeepLab v3 and v3+."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from atrousops._checks import bad_value
from atrousops.models.backbones import (
    RESNETS,
    Backbone,
    TimmBackbone,
    encoder,
    load_backbone,
    mobilenet_v3_large,
    resnet,
    set_rates,
)
from atrousops.models.base import Features, SegmentationModel, resize
from atrousops.models.vgg16_lowrank import VGG16LowRank
from atrousops.models.xception import Xception65
from atrousops.nn import ASPP, AtrousConv2d, conv_norm_relu
from atrousops.nn.sequence import run_layers


def _rates(first: int, output_stride: int, reference: int) -> tuple[int, int, int]:
    """Rates of ASPP in the proportion 1 : 2 : 3, given the first one at output stride `reference`."""
    rate = first * reference // output_stride
    return (rate, 2 * rate, 3 * rate)


class DeepLabV3Head(nn.Sequential):
    """ASPP, a 3x3 convolution, scores: features "out" (N, C, h, w) -> (N, num_classes, h, w)."""

    def __init__(
        self, in_channels: int, num_classes: int, rates: Sequence[int], width: int = 256, image_pooling: bool = True
    ) -> None:
        super().__init__(
            ASPP(in_channels, rates, width, image_pooling=image_pooling),
            *conv_norm_relu(width, width, 3),
            AtrousConv2d(width, num_classes, 1),
        )

    def forward(self, features: Features) -> Tensor:
        return run_layers(self.children(), features["out"])


class FCNHead(nn.Sequential):
    """The auxiliary classifier, or the one of an FCN on ResNet: a feature (N, C, h, w) -> (N, num_classes, h, w)."""

    def __init__(self, in_channels: int, num_classes: int, feature: str = "aux") -> None:
        width = in_channels // 4
        super().__init__(
            *conv_norm_relu(in_channels, width, 3), nn.Dropout(0.1), AtrousConv2d(width, num_classes, 1)
        )  # fmt: skip
        self.feature = feature

    def forward(self, features: Features) -> Tensor:
        return run_layers(self.children(), features[self.feature])


class DeepLabV3PlusHead(nn.Module):
    """ASPP on the deepest features, joined by low-level ones; two convolutions, all of them separable or not; scores.

    Features "out" (N, out_channels, h, w) and "low" (N, low_channels, H/4, W/4) -> (N, num_classes, H/4, W/4).
    """

    def __init__(
        self,
        out_channels: int,
        low_channels: int,
        num_classes: int,
        rates: tuple[int, ...],
        width: int = 256,
        low_width: int = 48,
        dropout: float = 0.1,
        separable: bool = True,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(out_channels, rates, width, separable=separable, dropout=dropout)
        self.low = conv_norm_relu(low_channels, low_width)
        self.decoder = nn.Sequential(
            conv_norm_relu(width + low_width, width, 3, separable=separable),
            conv_norm_relu(width, width, 3, separable=separable),
        )
        self.scores = AtrousConv2d(width, num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        low = self.low(features["low"])
        x = resize(self.aspp(features["out"]), low.shape[-2:])
        return self.scores(self.decoder(torch.cat([x, low], dim=1)))


def _v3(
    backbone: Backbone | TimmBackbone,
    num_classes: int,
    rates: Sequence[int],
    aux: bool,
    weights: Mapping[str, Tensor] | None,
    image_pooling: bool = True,
) -> SegmentationModel:
    load_backbone(backbone, weights)
    head = DeepLabV3Head(backbone.channels["out"], num_classes, rates, image_pooling=image_pooling)
    return SegmentationModel(backbone, head, FCNHead(backbone.channels["aux"], num_classes) if aux else None)


def _v3plus(
    backbone: Backbone | TimmBackbone | Xception65,
    num_classes: int,
    output_stride: int,
    weights: Mapping[str, Tensor] | None,
) -> SegmentationModel:
    load_backbone(backbone, weights)
    channels = backbone.channels
    rates = _rates(6, output_stride, reference=16)
    head = DeepLabV3PlusHead(channels["out"], channels["low"], num_classes, rates)
    return SegmentationModel(backbone, head)


def deeplabv3(
    num_classes: int = 21,
    backbone: str = "resnet101",
    output_stride: int = 16,
    rates: Sequence[int] | None = None,
    multi_grid: tuple[int, ...] | None = None,
    image_pooling: bool = True,
    aux: bool = False,
    backbone_weights: Mapping[str, Tensor] | None = None,
) -> SegmentationModel:
    """DeepLab v3 on any encoder, with every part of its paper's tables to be left out.

    | part | output at output_stride 16 (8, 32) |
    |---|---|
    | encoder, see `encoder` | 1/16 (1/8, 1/32) |
    | ASPP, rates 6 12 18 (12 24 36, 3 6 9), image pooling | same, 256 channels |
    | 3x3, 1x1, bilinear to the input's size | num_classes, 1 |

    Args:
        num_classes: K.
        backbone: of torchvision or timm, by name, as `encoder` has it.
        output_stride: 8, 16 or 32; the same weights serve all, so that one trains at 16 and tests at 8.
        rates: of ASPP, instead of those above; () leaves its 1x1 and the image pooling.
        multi_grid: of a ResNet: factors of the rate of layer4's blocks, (1, 2, 4) in the paper, two in ResNet-18.
        image_pooling: whether ASPP has the image-level branch.
        aux: an auxiliary classifier on the features of stride 16, whose scores are "aux".
        backbone_weights: as `encoder` takes them.

    Returns:
        (N, 3, H, W) -> {"out": (N, K, H, W)}, and "aux".

    Raises:
        ArgumentError: no such encoder, it has no multi-grid, a bad rate or output_stride, or a weight is missing.

    Source: Chen et al., Rethinking atrous convolution for semantic image segmentation (2017), tables 5 and 6.
    """
    trunk = encoder(backbone, output_stride)
    if multi_grid is not None:
        if backbone not in RESNETS:
            bad_value("deeplabv3", "multi_grid", f"be None unless backbone is one of {', '.join(RESNETS)}", multi_grid)
        assert isinstance(trunk, Backbone)
        set_rates(trunk["layer4"], 32 // output_stride, tuple(multi_grid))
    rates = _rates(12, output_stride, reference=8) if rates is None else rates
    return _v3(trunk, num_classes, rates, aux, backbone_weights, image_pooling)


def deeplabv3_resnet50(
    num_classes: int = 21,
    output_stride: int = 8,
    aux: bool = False,
    multi_grid: tuple[int, ...] | None = None,
    backbone_weights: Mapping[str, Tensor] | None = None,
) -> SegmentationModel:
    """DeepLab v3 on ResNet-50; torchvision's `deeplabv3_resnet50` weights load by `load_state_dict`.

    | part | output at output_stride 8 (16) | channels |
    |---|---|---|
    | conv1, maxpool | 1/4 | 64 |
    | layer1, layer2 | 1/4, 1/8 | 256, 512 |
    | layer3 | 1/8, rate 2 (1/16) | 1024 |
    | layer4 | 1/8, rate 4 (1/16, rate 2) | 2048 |
    | ASPP, rates 12 24 36 (6 12 18), image pooling | same | 256 |
    | 3x3, 1x1, bilinear to the input's size | 1 | num_classes |

    Args:
        num_classes: K.
        output_stride: 8 or 16.
        aux: an auxiliary classifier on layer3, whose scores are "aux".
        multi_grid: factors of the rate of layer4's three blocks, (1, 2, 4) in the paper; without, as in torchvision.
        backbone_weights: state dict of torchvision's classifier to start from.

    Returns:
        (N, 3, H, W) -> {"out": (N, K, H, W)}, and "aux".

    Raises:
        ArgumentError: output_stride is neither 8 nor 16, or a weight is missing.

    Source: Chen et al., Rethinking atrous convolution for semantic image segmentation (2017).
    """
    rates = _rates(12, output_stride, reference=8)
    return _v3(resnet(50, output_stride, multi_grid), num_classes, rates, aux, backbone_weights)


def deeplabv3_resnet101(
    num_classes: int = 21,
    output_stride: int = 8,
    aux: bool = False,
    multi_grid: tuple[int, ...] | None = None,
    backbone_weights: Mapping[str, Tensor] | None = None,
) -> SegmentationModel:
    """DeepLab v3 on ResNet-101; stages, arguments and result as `deeplabv3_resnet50`, with 23 blocks in layer3."""
    rates = _rates(12, output_stride, reference=8)
    return _v3(resnet(101, output_stride, multi_grid), num_classes, rates, aux, backbone_weights)


def deeplabv3_mobilenet_v3_large(
    num_classes: int = 21,
    output_stride: int = 16,
    aux: bool = False,
    backbone_weights: Mapping[str, Tensor] | None = None,
) -> SegmentationModel:
    """DeepLab v3 on MobileNetV3-Large; torchvision's `deeplabv3_mobilenet_v3_large` weights load by `load_state_dict`.

    | part | output at output_stride 16 (8) | channels |
    |---|---|---|
    | 0-3 | 1/4 | 24 |
    | 4-6 | 1/8 | 40 |
    | 7-12 | 1/16 (1/8, rate 2) | 112 |
    | 13-16 | 1/16, rate 2 (1/8, rate 4) | 960 |
    | ASPP, rates 12 24 36 (24 48 72), image pooling | same | 256 |
    | 3x3, 1x1, bilinear to the input's size | 1 | num_classes |

    Arguments and result as `deeplabv3_resnet50`; the auxiliary classifier sits on block 4.

    Source: Howard et al., Searching for MobileNetV3 (2019); Chen et al. (2017).
    """
    rates = _rates(12, output_stride, reference=16)
    return _v3(mobilenet_v3_large(output_stride), num_classes, rates, aux, backbone_weights)


def deeplabv3plus(
    num_classes: int = 21,
    backbone: str = "resnet101",
    output_stride: int = 16,
    backbone_weights: Mapping[str, Tensor] | None = None,
) -> SegmentationModel:
    """DeepLab v3+ on any encoder of `encoder`: stages, arguments and result as `deeplabv3plus_resnet50`.

    output_stride may be 32, too, with half the rates of 16.

    Raises:
        ArgumentError: no such encoder, a bad output_stride, or a weight is missing.
    """
    return _v3plus(encoder(backbone, output_stride), num_classes, output_stride, backbone_weights)


def deeplabv3plus_resnet50(
    num_classes: int = 21, output_stride: int = 16, backbone_weights: Mapping[str, Tensor] | None = None
) -> SegmentationModel:
    """DeepLab v3+ on ResNet-50.

    | part | output at output_stride 16 (8) | channels |
    |---|---|---|
    | layer1 ("low") -> 1x1 | 1/4 | 256 -> 48 |
    | layer4 ("out") | 1/16, rate 2 (1/8, rate 4) | 2048 |
    | atrous separable ASPP, rates 6 12 18 (12 24 36), image pooling | same | 256 |
    | bilinear, concatenated with low, two separable 3x3 | 1/4 | 304 -> 256 |
    | 1x1, bilinear to the input's size | 1 | num_classes |

    Args:
        num_classes: K.
        output_stride: 8 or 16.
        backbone_weights: state dict of torchvision's classifier to start from.

    Returns:
        (N, 3, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: output_stride is neither 8 nor 16, or a weight is missing.

    Source: Chen et al., Encoder-decoder with atrous separable convolution for semantic image segmentation (2018).
    """
    return _v3plus(resnet(50, output_stride), num_classes, output_stride, backbone_weights)


def deeplabv3plus_resnet101(
    num_classes: int = 21, output_stride: int = 16, backbone_weights: Mapping[str, Tensor] | None = None
) -> SegmentationModel:
    """DeepLab v3+ on ResNet-101; stages, arguments and result as `deeplabv3plus_resnet50`."""
    return _v3plus(resnet(101, output_stride), num_classes, output_stride, backbone_weights)


def deeplabv3plus_mobilenet_v3_large(
    num_classes: int = 21, output_stride: int = 16, backbone_weights: Mapping[str, Tensor] | None = None
) -> SegmentationModel:
    """DeepLab v3+ on MobileNetV3-Large: low-level features of 24 channels from block 3, 960 from block 16.

    Stages of the backbone as `deeplabv3_mobilenet_v3_large`, decoder, arguments and result as `deeplabv3plus_resnet50`.
    """
    return _v3plus(mobilenet_v3_large(output_stride), num_classes, output_stride, backbone_weights)


def deeplabv3plus_xception65(
    num_classes: int = 21,
    output_stride: int = 16,
    width: int = 32,
    backbone_weights: Mapping[str, Tensor] | None = None,
) -> SegmentationModel:
    """DeepLab v3+ on aligned Xception-65: low-level features of 256 channels, 2048 at the end; see `Xception65`.

    Decoder, arguments and result as `deeplabv3plus_resnet50`; width is the channels of the first layer, a multiple of
    4, to which the backbone's others are in proportion; backbone_weights is a state dict of timm's xception65.
    """
    return _v3plus(Xception65(output_stride, width), num_classes, output_stride, backbone_weights)


def deeplabv3plus_vgg16_lowrank(num_classes: int = 2, output_stride: int = 16) -> SegmentationModel:
    """A compact DeepLab v3+ of 5.2 M parameters: VGG-16 with every 3x3 filter but the first factorised.

    | part | output at output_stride 16 (8) | channels |
    |---|---|---|
    | stage1, stage2 | 1, 1/2 | 64, 128 |
    | stage3 ("low") -> 1x1 | 1/4 | 256 -> 48 |
    | stage4 | 1/8 | 512 |
    | stage5 ("out") | 1/16 (1/8, rate 2) | 512 |
    | atrous separable ASPP, rates 3 6 9 (6 12 18), image pooling | same | 160 |
    | bilinear, concatenated with low, two separable 3x3 | 1/4 | 208 -> 160 |
    | 1x1, bilinear to the input's size | 1 | num_classes |

    The rates are half of the paper's, as it is meant for images of about 400 pixels instead of 513 and crops of 224.
    The same weights serve both output strides.

    Args:
        num_classes: K.
        output_stride: 8 or 16.

    Returns:
        (N, 3, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: output_stride is neither 8 nor 16.

    Source: Chen et al. (2018); Simonyan and Zisserman (2014); Jaderberg et al., Speeding up convolutional neural
    networks with low rank expansions (2014).
    """
    backbone = VGG16LowRank(output_stride)
    rates = _rates(3, output_stride, reference=16)
    head = DeepLabV3PlusHead(backbone.out_channels, backbone.low_channels, num_classes, rates, width=160)
    return SegmentationModel(backbone, head)
