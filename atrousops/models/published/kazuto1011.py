"""DeepLab v2 on ResNet-101 in kazuto1011's deeplab-pytorch, at three scales."""

from __future__ import annotations

import re

from atrousops.common.class_names import COCO_STUFF, VOC
from atrousops.models.published.entry import Published, Rule, State, from_bgr, of_bytes, renamed

_PARTS = {"reduce": "1", "conv3x3": "2", "increase": "3"}


def _block(match: re.Match[str]) -> str:
    """The name of a residual block; the release counts the stem as the first layer, and blocks from one."""
    stage, block, part, kind, rest = match.groups()
    where = f"network.backbone.layer{int(stage) - 1}.{int(block) - 1}"
    if part == "shortcut":
        return f"{where}.downsample.{('conv', 'bn').index(kind)}.{rest}"
    return f"{where}.{kind}{_PARTS[part]}.{rest}"


_RULES: list[Rule] = [
    (r"base\.layer1\.conv1\.conv\.(.+)", r"network.backbone.conv1.\1"),
    (r"base\.layer1\.conv1\.bn\.(.+)", r"network.backbone.bn1.\1"),
    (r"base\.aspp\.c(\d)\.(.+)", r"network.classifier.\1.\2"),
    (r"base\.layer([2-5])\.block(\d+)\.(reduce|conv3x3|increase|shortcut)\.(conv|bn)\.(.+)", _block),
]


def change(state: State) -> State:
    return from_bgr(renamed(state, _RULES), "network.backbone.conv1.weight")


def _entry(file: str, classes: tuple[str, ...]) -> Published:
    arguments = {
        "num_classes": len(classes),
        "backbone": "resnet101",
        "multi_scale": True,
        "fuse_maps": True,
        "backbone_arguments": {"full_rate": True, "stride_in_1x1": True, "ceil_pool": True},
    }
    source = f"https://github.com/kazuto1011/deeplab-pytorch/releases/download/v1.0/deeplabv2_resnet101_msc-{file}.pth"
    return Published(
        "deeplabv2", arguments, classes, source, "", size=513, change=change, **of_bytes(122.675, 116.669, 104.008)
    )


ENTRIES = {
    "deeplabv2_resnet101_cocostuff10k": _entry("cocostuff10k-20000", COCO_STUFF),
    "deeplabv2_resnet101_cocostuff164k": _entry("cocostuff164k-100000", COCO_STUFF),
    "deeplabv2_resnet101_voc": _entry("vocaug-20000", VOC),
}
