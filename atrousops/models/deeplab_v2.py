"""DeepLab v2: ASPP with summed branches, on VGG-16 or ResNet, at three scales fused by their maximum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atrousops.common.checks import bad_value
from atrousops.models.backbones import RESNETS, load_backbone, resnet
from atrousops.models.base import Features, SegmentationModel, at_least, check_images, resize, scaled
from atrousops.models.crf import with_crf
from atrousops.models.deeplab_v1 import ZoomedModel, atrous_vgg16, scores
from atrousops.models.vgg import fully_convolutional, load_vgg16


class SummedASPP(nn.ModuleList):
    """The sum of branches at several rates, each with its own scores.

    Features "out" (N, C, h, w) -> (N, num_classes, h, w). With ResNet a branch is one 3x3 convolution; with VGG-16 it
    is fc6 (3x3 at the rate), fc7 and fc8.

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
    """One network at several scales of the image, fused by the maximum: out = max over s of network(image at s).

    In training the result also has the scores of every scale, "scale1.0", "scale0.75" and so on, at the image's size.
    The paper adds the loss of each to that of their maximum, and so does `Criterion`.

    Args:
        network: images (N, in_channels, H, W) of any size -> {"out": (N, K, H, W)}.
        scales: of the image, bilinear.
        align_corners: scale sides to (H - 1) s + 1 with aligned corners, as in the authors' release, instead of H s.
        fuse_maps: whether to fuse the maps of a SegmentationModel before they are enlarged. Without aligned corners,
            image sides are then rounded down. By default the value of align_corners.

    Source: Chen et al. (2018), section 4.1 ("MSC").
    """

    def __init__(
        self,
        network: nn.Module,
        scales: Sequence[float] = (1.0, 0.75, 0.5),
        align_corners: bool = False,
        fuse_maps: bool | None = None,
    ) -> None:
        super().__init__()
        if not scales or min(scales) <= 0:
            bad_value("MultiScale", "scales", "be positive numbers", scales)
        self.network = network
        self.in_channels: int = getattr(network, "in_channels", 3)
        self.scales = tuple(scales)
        self.align_corners = align_corners
        self.fuse_maps = align_corners if fuse_maps is None else fuse_maps

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        check_images(type(self).__name__, input, self.in_channels)
        size = input.shape[-2:]
        network = self.network
        small = self.fuse_maps and isinstance(network, SegmentationModel)
        maps: list[Tensor] = []
        for scale in self.scales:
            if self.align_corners:
                sides = [scaled(side - 1, scale) + 1 for side in size]
            else:
                sides = [max(1, scaled(side, scale)) for side in size]
            if small and not self.align_corners and scale != 1:
                image = F.interpolate(at_least(input, math.ceil(1 / scale)), scale_factor=scale, mode="bilinear")
            else:
                image = resize(input, sides, self.align_corners)
            found = cast(SegmentationModel, network).maps(image)["out"] if small else network(image)["out"]
            maps.append(resize(found, maps[0].shape[-2:] if maps and small else found.shape[-2:], self.align_corners))
        if not small:
            maps = [resize(found, size, self.align_corners) for found in maps]
        best = maps[0]
        for found in maps[1:]:
            best = torch.maximum(best, found)
        outputs = {"out": best}
        if self.training:
            outputs |= {f"scale{scale}": found for scale, found in zip(self.scales, maps, strict=True)}
        if small:
            outputs = {name: cast(SegmentationModel, network).enlarge(x, size) for name, x in outputs.items()}
        return outputs


def deeplabv2(
    num_classes: int = 21,
    backbone: str = "resnet101",
    rates: Sequence[int] = (6, 12, 18, 24),
    multi_scale: bool = False,
    crf: str | None = None,
    width: int = 64,
    backbone_weights: Mapping[str, Tensor] | None = None,
    pooling: int = 3,
    align_corners: bool = False,
    backbone_arguments: Mapping[str, Any] | None = None,
    fuse_maps: bool | None = None,
    in_channels: int = 3,
) -> nn.Module:
    """DeepLab v2: atrous spatial pyramid pooling with a sum, and scales fused by their maximum.

    | part | VGG-16: channels, stride | ResNet-50, -101, -152: channels, stride |
    |---|---|---|
    | trunk | 512, 8 (conv5 at rate 2) | 2048, 8 (layer3 at rate 2, layer4 at rate 4) |
    | ASPP, one branch per rate | 3x3 -> 1024, 1x1 -> 1024, 1x1 -> K | 3x3 -> K |
    | sum, bilinear to the input's size | K, 1 | K, 1 |
    | multi_scale: maximum over the image at 1, 0.75, 0.5 | K, 1 | K, 1 |
    | dense CRF, or CRF-RNN | K, 1 | K, 1 |

    The ResNet is torchvision's. The authors' is align_corners=True with backbone_arguments {"full_rate": True,
    "stride_in_1x1": True, "ceil_pool": True}, for images of 8 n + 1 pixels.

    Release: DeepLab v2's ResNet-101, layer by layer; all three scales share their weights. `load_published` reads the
    weights that kazuto1011's deeplab-pytorch converted or trained. With multi_scale, maps equal the release's for
    images of 32 n + 1 pixels. VGG-16 has DeepLab v1's poolings without its average pooling; the release's file was not
    available.

    Args:
        num_classes: K.
        backbone: "vgg16", or "resnet18" to "resnet152".
        rates: of ASPP; (6, 12, 18, 24) is the paper's ASPP-L, (2, 4, 8, 12) its ASPP-S, (12,) LargeFOV.
        multi_scale: see `MultiScale`.
        crf: None, "dense" (not in training) or "rnn"; see `WithCRF`.
        width: channels of VGG-16's first stage; all others are in proportion.
        backbone_weights: state dict of torchvision's classifier to start from; that of vgg16 is subsampled to each fc6
            and fc7.
        pooling: of VGG-16: 3, as in the authors' release, or 2; see `deeplabv1`, also for the interpolation.
        align_corners: for interpolating a ResNet's scores and its image to other scales.
        backbone_arguments: for a ResNet, further arguments of `encoder`.
        fuse_maps: of `MultiScale`.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}; log-probabilities if there is a CRF. With multi_scale, in
        training, also the scores of each scale.

    Raises:
        ArgumentError: another backbone or pooling, backbone_arguments it does not take, a rate below 1, crf is none of
            these, or a weight is missing.

    Source: Chen et al., DeepLab: semantic image segmentation with deep convolutional nets, atrous convolution, and
    fully connected CRFs (2018), section 3, tables 3 and 4.
    """
    known = ("vgg16", *RESNETS)
    if backbone not in known:
        bad_value("deeplabv2", "backbone", f"be one of {', '.join(known)}", repr(backbone))
    network: nn.Module
    if backbone == "vgg16":
        if backbone_arguments:
            bad_value("deeplabv2", "backbone_arguments", "be None with vgg16", backbone_arguments)
        trunk = atrous_vgg16(width, pooling, in_channels)
        head = SummedASPP(trunk.channels["out"], num_classes, rates, 16 * width)
        for branch in head:
            load_vgg16(trunk, cast(nn.Sequential, branch.get_submodule("0")), backbone_weights)
        align_corners = pooling == 3
        network = ZoomedModel(trunk, head) if align_corners else SegmentationModel(trunk, head)
    else:
        trunk = resnet(int(backbone.removeprefix("resnet")), 8, in_channels=in_channels, **(backbone_arguments or {}))
        load_backbone(trunk, backbone_weights)
        head = SummedASPP(trunk.channels["out"], num_classes, rates, None)
        network = SegmentationModel(trunk, head, align_corners=align_corners)
    if multi_scale:
        network = MultiScale(network, align_corners=align_corners, fuse_maps=fuse_maps)
    return with_crf(network, crf, num_classes, in_channels)
