"""FCN-32s, -16s and -8s of Long et al., exported from Caffe by layer names (.npz or .safetensors)."""

from __future__ import annotations

from atrousops.common.class_names import VOC
from atrousops.models.published import caffe
from atrousops.models.published.entry import Published, State, of_bytes

_RULES = [
    (r"score_fr\.(.+)", r"score.\1"),
    (r"score_pool([34])\.(.+)", r"skips.pool\1.\2"),
    (r"upscore2\.(.+)", r"doublings.pool4.\1"),
    (r"upscore_pool4\.(.+)", r"doublings.pool3.\1"),
    (r"upscore(?:8|16)?\.(.+)", r"upscore.\1"),
]


def change(state: State) -> State:
    return caffe.vgg16(state, _RULES)


def _entry(stride: int) -> Published:
    source = f"https://github.com/shelhamer/fcn.berkeleyvision.org (fcn{stride}s-heavy-pascal.caffemodel, exported)"
    return Published(f"fcn{stride}s", {}, VOC, source, "", size=500, change=change, **of_bytes(*caffe.MEAN))


ENTRIES = {f"fcn{stride}s_voc": _entry(stride) for stride in (32, 16, 8)}
