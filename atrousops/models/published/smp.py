"""DeepLab v3+ in segmentation_models_pytorch, on a ResNet of torchvision: for your own trained files."""

from __future__ import annotations

from functools import partial

from atrousops.common.class_names import VOC
from atrousops.models.published.entry import Published, renamed

_RULES = [
    (r"encoder\.(.+)", r"backbone.\1"),
    (r"decoder\.aspp\.0\.convs\.([1-3])\.0\.([01])\.(.+)", r"classifier.aspp.convs.\1.0.\2.\3"),
    (r"decoder\.aspp\.0\.(.+)", r"classifier.aspp.\1"),
    (r"decoder\.aspp\.1\.([01])\.(.+)", r"classifier.before.0.\1.\2"),
    (r"decoder\.aspp\.2\.(.+)", r"classifier.before.1.\1"),
    (r"decoder\.block1\.(.+)", r"classifier.low.\1"),
    (r"decoder\.block2\.(.+)", r"classifier.decoder.0.\1"),
    (r"segmentation_head\.0\.(.+)", r"classifier.scores.\1"),
]


ENTRIES = {
    "deeplabv3plus_smp": Published(
        "deeplabv3plus",
        {
            "num_classes": len(VOC),
            "backbone": "resnet34",
            "rates": (12, 24, 36),
            "form": "smp",
            "align_corners": True,
            "backbone_arguments": {"full_rate": True},
        },
        VOC,
        "https://github.com/qubvel-org/segmentation_models.pytorch (DeepLabV3Plus of your own training; encoder "
        "and classes by arguments, backbone and num_classes)",
        "",
        size=512,
        change=partial(renamed, rules=_RULES),
    )
}
