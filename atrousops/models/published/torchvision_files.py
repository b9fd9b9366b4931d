"""torchvision's files, whose names and shapes are those of our networks."""

from __future__ import annotations

from typing import Any

from atrousops.common.class_names import COCO, VOC
from atrousops.models.published.entry import Published

_FOLDER = "https://download.pytorch.org/models/"


def _semantic(network: str, file: str, **arguments: Any) -> Published:
    sha256 = file.rsplit("-", 1)[1]
    return Published(network, {"num_classes": 21, **arguments}, VOC, f"{_FOLDER}{file}.pth", sha256)


def _objects(file: str, **arguments: Any) -> Published:
    # The network normalises images itself.
    plain: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "size": 1333}
    source, sha256 = f"{_FOLDER}{file}.pth", file.rsplit("-", 1)[1]
    return Published("mask_rcnn", {"num_classes": 91, **arguments}, COCO, source, sha256, **plain)


ENTRIES = {
    "deeplabv3_resnet50_voc": _semantic("deeplabv3_resnet50", "deeplabv3_resnet50_coco-cd0a2569", aux=True),
    "deeplabv3_resnet101_voc": _semantic("deeplabv3_resnet101", "deeplabv3_resnet101_coco-586e9e4e", aux=True),
    "deeplabv3_mobilenet_v3_large_voc": _semantic(
        "deeplabv3_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large-fc3c493d", aux=True
    ),
    "fcn_resnet50_voc": _semantic("fcn_resnet50", "fcn_resnet50_coco-1167a1af", aux=True),
    "fcn_resnet101_voc": _semantic("fcn_resnet101", "fcn_resnet101_coco-7ecb50ca", aux=True),
    "lraspp_mobilenet_v3_large_voc": _semantic("lraspp_mobilenet_v3_large", "lraspp_mobilenet_v3_large-d234d4ea"),
    "maskrcnn_resnet50_fpn_coco": _objects("maskrcnn_resnet50_fpn_coco-bf2d0c1e", frozen_norm=True),
    "maskrcnn_resnet50_fpn_v2_coco": _objects("maskrcnn_resnet50_fpn_v2_coco-73cbd019", version=2),
}
