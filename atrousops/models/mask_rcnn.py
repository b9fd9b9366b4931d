"""Mask R-CNN: torchvision's framework on our RoIAlign and convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign, masks_to_boxes
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from atrousops.common.checks import bad_value
from atrousops.models._detection import Anchors, Boxes, Heads, Proposals, Transform
from atrousops.models.backbones import RESNETS, Encoder, encoder, load_backbone
from atrousops.models.base import check_objects
from atrousops.models.channels import normalisation, set_in_channels
from atrousops.surgery.convert import convert

_LEVELS = ("low", "mid", "aux", "out")


class FeaturePyramid(nn.Module):
    """torchvision's pyramid on an encoder: images -> {"0", "1", "2", "3", "pool": (N, 256, h, w)}, strides 4 to 64."""

    out_channels = 256

    def __init__(self, backbone: Encoder) -> None:
        super().__init__()
        self.body = backbone
        widths = [backbone.channels[level] for level in _LEVELS]
        self.fpn = FeaturePyramidNetwork(widths, self.out_channels, LastLevelMaxPool())

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        features = self.body(input)
        maps: dict[str, Tensor] = self.fpn({str(number): features[level] for number, level in enumerate(_LEVELS)})
        return maps


class DilatedC5(nn.Module):
    """The last stage of an encoder at stride 16, atrous, as the only feature map: images -> {"0": (N, C, h, w)}."""

    def __init__(self, backbone: Encoder) -> None:
        super().__init__()
        self.body = backbone
        self.out_channels = backbone.channels["out"]

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        return {"0": self.body(input)["out"]}


class MaskRCNN(detection.MaskRCNN):
    """torchvision's MaskRCNN with the methods that export, training and evaluation need from a network of objects."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # As in `convert`: the same modules with other methods.
        for module, ours in (
            (self.rpn, Proposals),
            (self.rpn.box_coder, Boxes),
            (self.roi_heads, Heads),
            (self.roi_heads.box_coder, Boxes),
            (self.transform, Transform),
        ):
            module.__class__ = ours
        # A caller's own generator stays as it is.
        if type(self.rpn.anchor_generator) is AnchorGenerator:
            self.rpn.anchor_generator.__class__ = Anchors

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The sum of its losses, averaged over images.

        Args:
            images: (N, in_channels, H, W), in 0..1.
            labels: (N, 2, H, W), class and number of the object; pixels of class 255 belong to no object.

        Raises:
            ArgumentError: other shapes.
        """
        check_objects("MaskRCNN.loss", images, labels)
        targets = []
        for classes, numbers in labels:
            numbers = torch.where(classes == 255, 0, numbers)
            found = numbers.unique()
            masks = numbers == found[found > 0][:, None, None]
            first = masks.flatten(1).long().argmax(1) if len(masks) else numbers.new_zeros(0)
            boxes = masks_to_boxes(masks) if len(masks) else images.new_zeros(0, 4)
            # The outer edge of the last pixel, so that no box is empty.
            boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + 1], 1)
            targets.append({"boxes": boxes, "labels": classes.flatten()[first], "masks": masks.byte()})
        return torch.stack(list(self(list(images), targets).values())).sum()

    def objects(self, image: Tensor) -> tuple[list[int], list[float], Tensor]:
        """Classes, scores and masks (M, H, W) of the objects of one image (3, H, W)."""
        found = self([image])[0]
        return found["labels"].tolist(), found["scores"].tolist(), found["masks"][:, 0] > 0.5


def mask_rcnn(
    num_classes: int = 91,
    backbone: str = "resnet50",
    features: str = "fpn",
    frozen_norm: bool = False,
    backbone_weights: Mapping[str, Tensor] | None = None,
    backbone_arguments: Mapping[str, Any] | None = None,
    in_channels: int = 3,
    version: int = 1,
    **settings: Any,
) -> MaskRCNN:
    """Mask R-CNN on a classifier with a feature pyramid, or on its dilated last stage.

    | part | "fpn" | "dilated_c5" |
    |---|---|---|
    | features | 256 channels at strides 4 8 16 32 64 | the last stage at stride 16, rate 2: 2048 of ResNet-50 |
    | anchors, of 3 ratios | one size per level, 32 to 512 | 32 64 128 256 512 |
    | boxes | RoIAlign 7x7, two layers of 1024 | the same |
    | masks | RoIAlign 14x14, four 3x3 of 256, deconvolution k2 s2, 1x1 | the same |

    detectron2's dilated C5 has layer4 at rate 2 from its first block on: backbone_arguments {"full_rate": True}, and
    "stride_in_1x1" with the weights of He et al.

    Release: torchvision's. `load_state_dict` accepts the checkpoint of `maskrcnn_resnet50_fpn` if frozen_norm is set,
    and that of `maskrcnn_resnet50_fpn_v2` with version=2. `load_published` reads both.

    Args:
        num_classes: K, background (class 0) included.
        backbone: "resnet18" to "resnet152", or another network that `encoder` accepts, such as "efficientnet_lite0".
        features: "fpn" or "dilated_c5".
        frozen_norm: use frozen batch normalisation, for pretrained weights and small batches.
        backbone_weights: state dict of torchvision's classifier to start from.
        backbone_arguments: for "dilated_c5", further arguments of `encoder`.
        in_channels: C, channels of the image; RGB filters are adapted to them, see `channels.adapt`.
        version: 2 is torchvision's second version of "fpn": normalisation in the pyramid and the heads, two layers in
            the proposals' head, and four 3x3 convolutions before one layer of 1024 for boxes.
        settings: keyword arguments of torchvision's MaskRCNN, such as min_size, max_size, image_mean, image_std or
            box_score_thresh.

    Returns:
        In evaluation: a list of N images (C, H, W) in 0..1 -> a list of N dicts with "boxes" (M, 4), "labels" (M,),
        "scores" (M,) and "masks" (M, 1, H, W). In training: images and targets -> a dict of losses.
        In evaluation torch.export accepts the whole network: image sizes are static, the number of objects is dynamic.

    Raises:
        ArgumentError: an unknown backbone, features or version, version 2 without "fpn", backbone_arguments with "fpn",
            in_channels is below 1, or a weight is missing.

    Source: He et al., Mask R-CNN (2017), section 3, figure 4; Lin et al., Feature pyramid networks (2017); Dai et al.,
    Deformable convolutional networks (2017), section 4.1 (dilated conv5).
    """
    if features not in ("fpn", "dilated_c5"):
        bad_value("mask_rcnn", "features", 'be "fpn" or "dilated_c5"', repr(features))
    if version not in (1, 2) or (version == 2 and features != "fpn"):
        bad_value("mask_rcnn", "version", 'be 1, or 2 with "fpn"', version)
    if features == "fpn":
        if backbone_arguments:
            bad_value("mask_rcnn", "backbone_arguments", 'be None with "fpn"', backbone_arguments)
        trunk = _pyramid(backbone, frozen_norm, backbone_weights, in_channels)
        if version == 2:
            settings = {**_second(trunk), **settings}
    else:
        body = encoder(backbone, 16, backbone_weights, in_channels, **(backbone_arguments or {}))
        trunk = DilatedC5(body)
        if frozen_norm:
            _freeze(trunk)
        sizes = ((32, 64, 128, 256, 512),)
        # Those given by the caller take precedence.
        settings = {
            "rpn_anchor_generator": AnchorGenerator(sizes, ((0.5, 1.0, 2.0),)),
            "box_roi_pool": MultiScaleRoIAlign(["0"], 7, 2),
            "mask_roi_pool": MultiScaleRoIAlign(["0"], 14, 2),
            **settings,
        }
    mean, std = normalisation(in_channels)
    network = MaskRCNN(trunk, num_classes, **{"image_mean": list(mean), "image_std": list(std), **settings})
    convert(network)
    return network


def _pyramid(name: str, frozen_norm: bool, weights: Mapping[str, Tensor] | None, in_channels: int) -> Any:
    """A feature pyramid on a classifier; that of a ResNet is torchvision's, for the names of its weights."""
    if name not in RESNETS:
        pyramid = FeaturePyramid(encoder(name, 32, weights, in_channels))
        if frozen_norm:
            _freeze(pyramid)
        return pyramid
    norm = FrozenBatchNorm2d if frozen_norm else nn.BatchNorm2d
    trunk = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=norm, trainable_layers=5)
    set_in_channels(trunk.body, in_channels)
    load_backbone(trunk.body, weights)
    return trunk


def _second(trunk: Any) -> dict[str, nn.Module]:
    """Adds the normalisations of the pyramid and the heads of torchvision's second version.

    Source: Li et al., Benchmarking detection transfer learning with vision transformers (2021), as in torchvision.
    """
    norm, channels = nn.BatchNorm2d, 256
    widths = [layer[0].in_channels for layer in trunk.fpn.inner_blocks]
    extra = trunk.fpn.extra_blocks
    trunk.fpn = FeaturePyramidNetwork(widths, channels, extra, norm)
    return {
        "rpn_head": RPNHead(channels, 3, conv_depth=2),
        "box_head": FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [1024], norm_layer=norm),
        "mask_head": MaskRCNNHeads(channels, [channels] * 4, 1, norm_layer=norm),
    }


def _freeze(module: nn.Module) -> None:
    """Replaces batch normalisations by frozen ones with the same values."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            _freeze(child)
