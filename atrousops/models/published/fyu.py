"""Yu and Koltun's networks for VOC, CamVid, KITTI and Cityscapes, exported from Caffe by layer names.

The release interpolates probabilities, ours interpolates scores. Both are equal at every eighth pixel; in between, the
class of the maximum differs only if two classes are close.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from atrousops.common.class_names import CAMVID, CITYSCAPES, VOC
from atrousops.models.published import caffe
from atrousops.models.published.entry import Published, State, of_bytes

_SEVEN = (1, 1, 2, 4, 8, 1)
_EIGHT = (1, 1, 2, 4, 8, 16, 1)
_TEN = (1, 1, 2, 4, 8, 16, 32, 64, 1)
# In the order of the release's datasets/camvid.json.
_CAMVID = tuple(CAMVID[i] for i in (1, 5, 0, 8, 6, 3, 9, 7, 2, 4, 10))


def _rules(dilations: Sequence[int]) -> list[tuple[str, str]]:
    inner = ["conv1_1", "conv1_2", *(f"conv{i}_1" for i in range(2, len(dilations) - 1)), "fc1", "final"]
    rules = [(rf"ctx?_{name}\.(.+)", rf"context.layers.{i}.\1") for i, name in enumerate(inner)]
    return [(r"(?:fc-)?final\.(.+)", r"score.\1"), *rules]


def _change(dilations: Sequence[int]) -> Callable[[State], State]:
    def change(state: State) -> State:
        found = caffe.vgg16(state, _rules(dilations))
        # Bilinear and not learned.
        found.pop("ctx_upsample.weight", None)
        return found

    return change


def _entry(
    file: str,
    classes: tuple[str, ...],
    mean: tuple[float, float, float],
    kind: str = "basic",
    dilations: Sequence[int] = _EIGHT,
    **arguments: str,
) -> Published:
    border = arguments.pop("border", "layers")
    context = {"dilations": tuple(dilations), "border": border}
    everything = {"num_classes": len(classes), "context": kind, "context_arguments": context, **arguments}
    source = f"http://dl.yf.io/dilation/models/{file}.caffemodel, exported"
    return Published(
        "dilated_vgg16", everything, classes, source, "", size=1024, change=_change(dilations), **of_bytes(*mean)
    )


ENTRIES = {
    "dilation8_voc": _entry(
        "dilation8_pascal_voc", VOC, (116.52, 111.36, 102.93), "large", placement="corner", border="input"
    ),
    "dilation8_camvid": _entry(
        "dilation8_camvid", _CAMVID, (105.41212523, 108.77808759, 110.70313206), placement="corner"
    ),
    "dilation7_kitti": _entry(
        "dilation7_kitti", _CAMVID, (91.34692262, 95.55136972, 96.19429688), dilations=_SEVEN, placement="corner"
    ),
    "dilation10_cityscapes": _entry("dilation10_cityscapes", CITYSCAPES, (73.16, 82.91, 72.39), dilations=_TEN),
}
