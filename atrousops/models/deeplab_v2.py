"""DeepLab v2: ASPP whose branches are summed, on VGG-16 or ResNet, at three scales fused by their maximum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from atrousops._checks import bad_value
from atrousops.models.backbones import RESNETS, load_backbone, resnet
from atrousops.models.base import Features, SegmentationModel, check_images, resize
from atrousops.models.crf import with_crf
from atrousops.models.deeplab_v1 import atrous_vgg16, scores
from atrousops.models.vgg import fully_convolutional, load_vgg16


class SummedASPP(nn.ModuleList):
    """Branches at several rates, each with scores of its own, and their sum.

    Features "out" (N, C, h, w) -> (N, num_classes, h, w). Behind ResNet a branch is one 3x3 convolution; behind VGG-16
    it is fc6 (3x3 at the rate), fc7 and fc8.

    Source: Chen et al. (2018), section 3.2, figure 7.
    """

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int], fc_channels: int | None) -> None:
        if not rates or min(rates) < 1:
            bad_value("SummedASPP", "rates", "be integers of at least 1", rates, "For example (6, 12, 18, 24).")
        super().__init__()
        for rate in rates:
            if fc_channels is None:
                self.append(scores(in_channels, num_classes, 3, rate))
            else:
                fc = fully_convolutional(in_channels, fc_channels, 3, rate, rate)
                self.append(nn.Sequential(fc, scores(fc_channels, num_classes)))

    def forward(self, features: Features) -> Tensor:
        first, *others = self
        total = first(features["out"])
        for branch in others:
            total = total + branch(features["out"])
        return total


class MultiScale(nn.Module):
    """One network at several scales of the image, fused by the larger score: out = max over s of network(image at s).

    Args:
        network: images (N, in_channels, H, W) of any size -> {"out": (N, K, H, W)}.
        scales: of the image, bilinear.

    Source: Chen et al. (2018), section 4.1 ("MSC").
    """

    def __init__(self, network: nn.Module, scales: Sequence[float] = (1.0, 0.75, 0.5)) -> None:
        super().__init__()
        if not scales or min(scales) <= 0:
            bad_value("MultiScale", "scales", "be positive numbers", scales)
        self.network = network
        self.in_channels: int = getattr(network, "in_channels", 3)
        self.scales = tuple(scales)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        check_images(type(self).__name__, input, self.in_channels)
        size = input.shape[-2:]
        best = None
        for scale in self.scales:
            image = resize(input, [max(1, round(scale * side)) for side in size])
            found = resize(self.network(image)["out"], size)
            best = found if best is None else torch.maximum(best, found)
        assert best is not None
        return {"out": best}


def deeplabv2(
    num_classes: int = 21,
    backbone: str = "resnet101",
    rates: Sequence[int] = (6, 12, 18, 24),
    multi_scale: bool = False,
    crf: str | None = None,
    width: int = 64,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
) -> nn.Module:
    """DeepLab v2: atrous spatial pyramid pooling by a sum, with scales fused by their maximum.

    | part | VGG-16: channels, stride | ResNet-50, -101, -152: channels, stride |
    |---|---|---|
    | trunk | 512, 8 (conv5 at rate 2) | 2048, 8 (layer3 at rate 2, layer4 at rate 4) |
    | ASPP, one branch a rate | 3x3 -> 1024, 1x1 -> 1024, 1x1 -> K | 3x3 -> K |
    | sum, bilinear to the input's size | K, 1 | K, 1 |
    | multi_scale: maximum over the image at 1, 0.75, 0.5 | K, 1 | K, 1 |
    | dense CRF, or CRF-RNN | K, 1 | K, 1 |

    Args:
        num_classes: K.
        backbone: "vgg16", or "resnet" with its depth, from 18 to 152.
        rates: of ASPP; (6, 12, 18, 24) is the paper's ASPP-L, (2, 4, 8, 12) its ASPP-S, (12,) LargeFOV.
        multi_scale: see `MultiScale`.
        crf: None, "dense" (not in training) or "rnn"; see `WithCRF`.
        width: channels of VGG-16's first stage; all others are in proportion.
        backbone_weights: state dict of torchvision's classifier to start from; that of vgg16 is decimated into each fc6
            and fc7.
        in_channels: of the image; filters for RGB are summed (1) or cycled to it, see `channels.adapt`.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}; log-probabilities where there is a CRF.

    Raises:
        ArgumentError: another backbone, a rate below 1, crf is none of these, or a weight is missing.

    Source: Chen et al., DeepLab: semantic image segmentation with deep convolutional nets, atrous convolution, and
    fully connected CRFs (2018), section 3, tables 3 and 4.
    """
    known = ("vgg16", *RESNETS)
    if backbone not in known:
        bad_value("deeplabv2", "backbone", f"be one of {', '.join(known)}", repr(backbone))
    if backbone == "vgg16":
        trunk = atrous_vgg16(width, in_channels)
        head = SummedASPP(trunk.channels["out"], num_classes, rates, 16 * width)
        for branch in head:
            load_vgg16(trunk, cast(nn.Sequential, branch.get_submodule("0")), backbone_weights)
    else:
        trunk = resnet(int(backbone.removeprefix("resnet")), output_stride=8, in_channels=in_channels)
        load_backbone(trunk, backbone_weights)
        head = SummedASPP(trunk.channels["out"], num_classes, rates, None)
    network: nn.Module = SegmentationModel(trunk, head)
    if multi_scale:
        network = MultiScale(network)
    return with_crf(network, crf, num_classes, in_channels)
