"""The authors' DeepLab v1 (DeepLab-LargeFOV), exported from Caffe by layer names."""

from __future__ import annotations

from atrousops.common.class_names import VOC
from atrousops.models.published import caffe
from atrousops.models.published.entry import Published, State, of_bytes, renamed

_RULES = [(r"fc\.(.+)", r"classifier.fc.\1"), (r"fc8_\w+\.(.+)", r"classifier.scores.\1")]


def change(state: State) -> State:
    return renamed(caffe.vgg16(state, []), _RULES)


ENTRIES = {
    "deeplabv1_largefov_voc": Published(
        "deeplabv1",
        {},
        VOC,
        "https://bitbucket.org/aquariusjay/deeplab-public-ver2 (DeepLab-LargeFOV, exported)",
        "",
        size=500,
        change=change,
        **of_bytes(122.675, 116.669, 104.008),
    )
}
