"""DeepLab v3+ on ResNet-101 in jfzhang95's pytorch-deeplab-xception."""

from __future__ import annotations

from functools import partial

from atrousops.common.class_names import VOC
from atrousops.models.published.entry import Published, renamed

_RULES = [
    *((rf"aspp\.aspp{i}\.atrous_conv\.(.+)", rf"classifier.aspp.convs.{i - 1}.0.\1") for i in range(1, 5)),
    *((rf"aspp\.aspp{i}\.bn\.(.+)", rf"classifier.aspp.convs.{i - 1}.1.\1") for i in range(1, 5)),
    (r"aspp\.global_avg_pool\.(.+)", r"classifier.aspp.convs.4.\1"),
    (r"aspp\.conv1\.(.+)", r"classifier.aspp.project.0.\1"),
    (r"aspp\.bn1\.(.+)", r"classifier.aspp.project.1.\1"),
    (r"decoder\.conv1\.(.+)", r"classifier.low.0.\1"),
    (r"decoder\.bn1\.(.+)", r"classifier.low.1.\1"),
    (r"decoder\.last_conv\.([01])\.(.+)", r"classifier.decoder.0.\1.\2"),
    (r"decoder\.last_conv\.4\.(.+)", r"classifier.decoder.1.0.\1"),
    (r"decoder\.last_conv\.5\.(.+)", r"classifier.decoder.1.1.\1"),
    (r"decoder\.last_conv\.8\.(.+)", r"classifier.scores.\1"),
]


ENTRIES = {
    "deeplabv3plus_resnet101_voc": Published(
        "deeplabv3plus",
        {
            "backbone": "resnet101",
            "separable": False,
            "align_corners": True,
            "backbone_arguments": {"multi_grid": (1, 2, 4)},
        },
        VOC,
        "https://github.com/jfzhang95/pytorch-deeplab-xception (deeplab-resnet.pth.tar)",
        "",
        size=513,
        change=partial(renamed, rules=_RULES),
    )
}
