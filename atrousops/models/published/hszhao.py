"""PSPNet in hszhao's semseg."""

from __future__ import annotations

from functools import partial

from atrousops.common.class_names import ADE20K, CITYSCAPES, VOC
from atrousops.models.published.entry import DEEP_STEM, Published, renamed

_RULES = [
    *((rf"layer0\.{number}\.(.+)", rf"backbone.{name}.\1") for number, name in DEEP_STEM.items()),
    (r"(layer[1-4]\..+)", r"backbone.\1"),
    (r"ppm\.features\.(.+)", r"classifier.0.branches.\1"),
    (r"cls\.0\.(.+)", r"classifier.1.\1"),
    (r"cls\.1\.(.+)", r"classifier.2.\1"),
    (r"cls\.4\.(.+)", r"classifier.5.\1"),
    (r"aux\.(.+)", r"aux_classifier.\1"),
]


def _entry(depth: int, data: str, classes: tuple[str, ...]) -> Published:
    arguments = {
        "num_classes": len(classes),
        "backbone": f"resnet{depth}",
        "align_corners": True,
        "backbone_arguments": {"deep_stem": (64, 64, 128), "full_rate": True},
    }
    source = f"https://github.com/hszhao/semseg (exp/{data}/pspnet{depth}/model)"
    return Published("pspnet", arguments, classes, source, "", change=partial(renamed, rules=_RULES))


_DATA = {"ade20k": ADE20K, "cityscapes": CITYSCAPES, "voc2012": VOC}
ENTRIES = {
    f"pspnet{depth}_{data}": _entry(depth, data, classes) for depth in (50, 101) for data, classes in _DATA.items()
}
