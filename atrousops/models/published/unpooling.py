"""SegNet and SegNet-Basic for CamVid and DeconvNet for VOC, exported from Caffe by layer names.

The files are for inference; their normalisations have only a scale and a shift.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from atrousops.common.class_names import CAMVID, VOC
from atrousops.models.published import caffe
from atrousops.models.published.entry import Published, Rule, State, from_bgr, of_bytes, renamed

# Layer numbers in torchvision's vgg16_bn; the normalisation has the next number.
_NUMBERS = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
_DECODER = [(stage, i) for stage, count in zip((5, 4, 3, 2, 1), (3, 3, 3, 2, 2), strict=True) for i in range(count)]


# Plus the eps of our networks this is one.
_VARIANCE = 1 - 1e-5


def _pair(conv: str, norm: str, ours: str, number: int) -> Iterator[Rule]:
    yield rf"{conv}\.(weight|bias)", rf"{ours}.{number}.\1"
    yield rf"{norm}\.(weight|bias)", rf"{ours}.{number + 1}.\1"


def _with_statistics(state: State) -> State:
    """Converts normalisations with only a scale and a shift to mean 0 and a variance that with eps is 1."""
    found = dict(state)
    for name, value in state.items():
        layer, _, part = name.rpartition(".")
        if part != "weight" or value.numel() != max(value.shape, default=0) or f"{layer}.bias" not in state:
            continue
        found[name], found[f"{layer}.bias"] = value.flatten(), state[f"{layer}.bias"].flatten()
        found[f"{layer}.running_mean"] = torch.zeros_like(found[name])
        found[f"{layer}.running_var"] = torch.full_like(found[name], _VARIANCE)
    return found


def _segnet_rules() -> list[Rule]:
    rules: list[Rule] = []
    for name, number in zip(caffe.LAYERS, _NUMBERS, strict=True):
        rules += _pair(name, f"{name}_bn", "backbone", number)
    for stage, i in _DECODER:
        # Numbered from the end: conv5_3_D is the first of its stage.
        last = 3 if stage >= 3 else 2
        name = f"conv{stage}_{last - i}_D"
        rules += _pair(name, f"{name}_bn", f"decoder.stages.{5 - stage}", 3 * i)
    return [(r"conv1_1_D\.(weight|bias)", r"score.\1"), *rules]


def _deconvnet_rules() -> list[Rule]:
    rules: list[Rule] = []
    for name, number in zip(caffe.LAYERS, _NUMBERS, strict=True):
        rules += _pair(name, name.replace("conv", "bn"), "backbone", number)
    rules += [*_pair("fc6", "bnfc6", "fc", 0), *_pair("fc7", "bnfc7", "fc", 3)]
    rules += _pair("fc6-deconv", "fc6-deconv-bn", "fc", 6)
    for stage, i in _DECODER:
        name = f"{stage}_{i + 1}"
        rules += _pair(f"deconv{name}", f"debn{name}", f"decoder.stages.{5 - stage}", 3 * i)
    return [(r"seg-score(?:-voc)?\.(weight|bias)", r"score.\1"), *rules]


def _basic_rules() -> list[Rule]:
    rules: list[Rule] = []
    for i in range(4):
        rules += _pair(f"conv{i + 1}", f"conv{i + 1}_bn", f"encoder.{i}", 0)
        rules += _pair(f"conv_decode{4 - i}", f"conv_decode{4 - i}_bn", f"decoder.{i}", 0)
    return [(r"conv_classifier\.(weight|bias)", r"score.\1"), *rules]


def segnet_basic(state: State) -> State:
    return from_bgr(_with_statistics(renamed(caffe.blobs(state), _basic_rules())), "encoder.0.0.weight")


def segnet(state: State) -> State:
    return from_bgr(_with_statistics(renamed(caffe.blobs(state), _segnet_rules())), "backbone.0.weight")


def deconvnet(state: State) -> State:
    return from_bgr(_with_statistics(renamed(caffe.blobs(state), _deconvnet_rules())), "backbone.0.weight")


ENTRIES = {
    "segnet_camvid": Published(
        "segnet",
        {"num_classes": 11},
        CAMVID,
        "https://github.com/alexgkendall/SegNet-Tutorial (test_weights.caffemodel, exported)",
        "",
        size=480,
        change=segnet,
        **of_bytes(0, 0, 0),
    ),
    "segnet_basic_camvid": Published(
        "segnet_basic",
        {"num_classes": 11, "local_response": True},
        CAMVID,
        "https://github.com/alexgkendall/SegNet-Tutorial (segnet_basic's test_weights.caffemodel, exported)",
        "",
        size=480,
        change=segnet_basic,
        **of_bytes(0, 0, 0),
    ),
    "deconvnet_voc": Published(
        "deconvnet",
        {"num_classes": 21},
        VOC,
        "https://github.com/HyeonwooNoh/DeconvNet (DeconvNet_trainval_inference.caffemodel, exported)",
        "",
        size=224,
        change=deconvnet,
        **of_bytes(*caffe.MEAN),
    ),
}
