"""PSPNet in OpenMMLab's MMSegmentation, on ResNet-50 and -101 v1c."""

from __future__ import annotations

from functools import partial

from atrousops.common.class_names import ADE20K, CITYSCAPES, VOC
from atrousops.models.published.entry import DEEP_STEM, Published, renamed

_RULES = [
    *((rf"backbone\.stem\.{number}\.(.+)", rf"backbone.{name}.\1") for number, name in DEEP_STEM.items()),
    (r"decode_head\.psp_modules\.(\d)\.1\.conv\.(.+)", r"classifier.0.branches.\1.1.\2"),
    (r"decode_head\.psp_modules\.(\d)\.1\.bn\.(.+)", r"classifier.0.branches.\1.2.\2"),
    (r"decode_head\.bottleneck\.conv\.(.+)", r"classifier.1.\1"),
    (r"decode_head\.bottleneck\.bn\.(.+)", r"classifier.2.\1"),
    (r"decode_head\.conv_seg\.(.+)", r"classifier.5.\1"),
    (r"auxiliary_head\.convs\.0\.conv\.(.+)", r"aux_classifier.0.\1"),
    (r"auxiliary_head\.convs\.0\.bn\.(.+)", r"aux_classifier.1.\1"),
    (r"auxiliary_head\.conv_seg\.(.+)", r"aux_classifier.4.\1"),
]


def _entry(depth: int, data: str, classes: tuple[str, ...]) -> Published:
    arguments = {
        "num_classes": len(classes),
        "backbone": f"resnet{depth}",
        "backbone_arguments": {"deep_stem": (32, 32, 64)},
    }
    source = f"https://github.com/open-mmlab/mmsegmentation (pspnet_r{depth}-d8 for {data})"
    return Published("pspnet", arguments, classes, source, "", change=partial(renamed, rules=_RULES))


_DATA = {"ade20k": ADE20K, "cityscapes": CITYSCAPES, "voc2012": VOC}
ENTRIES = {
    f"pspnet{depth}_{data}_mmseg": _entry(depth, data, classes)
    for depth in (50, 101)
    for data, classes in _DATA.items()
}
