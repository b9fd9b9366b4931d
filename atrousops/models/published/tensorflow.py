"""DeepLab v3+ on Xception-65 and Auto-DeepLab in TensorFlow's deeplab: the variables of a checkpoint, as .npz.

TensorFlow is needed only to write the file: `numpy.savez("file.npz", **{name: reader.get_tensor(name) for name in
reader.get_variable_to_shape_map()})` with `reader = tf.train.load_checkpoint(...)`.
"""

from __future__ import annotations

import re
from typing import Any

from atrousops.common.class_names import ADE20K, CITYSCAPES, VOC
from atrousops.models.published.entry import Published, Rule, State, renamed

_PARTS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "biases": "bias",
    "weights": "weight",
    "depthwise_weights": "weight",
}
# Used only in training.
_SLOTS = re.compile(r"global_step|.*/(?:Momentum|Adam|Adam_1|ExponentialMovingAverage)")


def _changed(state: State, rules: list[Rule]) -> State:
    """Renames variables: the rules give the layer, and the last part of a name gives the tensor."""
    found: State = {}
    for name, value in state.items():
        if _SLOTS.fullmatch(name):
            continue
        # A separable layer may be a single layer in the release, with two filters.
        layer, _, part = name.replace("/pointwise_weights", "/pointwise/weights").rpartition("/")
        (where,) = renamed({layer: value}, rules)
        if where == layer or part not in _PARTS:
            found[name] = value
            continue
        if value.dim() == 4:
            # Filters are (h, w, in, out), depthwise ones (h, w, channels, 1).
            value = value.permute((2, 3, 0, 1) if part == "depthwise_weights" else (3, 2, 0, 1)).contiguous()
        found[f"{where}.{_PARTS[part]}"] = value
    return found


def _layer(theirs: str, conv: str, norm: str) -> list[Rule]:
    return [(theirs, conv), (f"{theirs}/BatchNorm", norm)]


def _separable(theirs: str, ours: str) -> list[Rule]:
    """A layer of the head, which is a depthwise and a pointwise layer."""
    depthwise = _layer(f"{theirs}_depthwise", f"{ours}.0.0", f"{ours}.0.1")
    return [*depthwise, *_layer(f"{theirs}_pointwise", f"{ours}.0.3", f"{ours}.1")]


def _head(separable: bool) -> list[Rule]:
    where = "classifier"
    rules = [
        *_layer("image_pooling", f"{where}.aspp.convs.4.1", f"{where}.aspp.convs.4.2"),
        *_layer("aspp0", f"{where}.aspp.convs.0.0", f"{where}.aspp.convs.0.1"),
        *_layer("concat_projection", f"{where}.aspp.project.0", f"{where}.aspp.project.1"),
        *_layer("decoder/feature_projection0", f"{where}.low.0", f"{where}.low.1"),
        ("logits/semantic", f"{where}.scores"),
    ]
    three = {f"aspp{i}": f"{where}.aspp.convs.{i}" for i in (1, 2, 3)}
    for i in (0, 1):
        name = f"decoder_conv{i}" if separable else f"decoder_conv0/decoder_conv0_{i + 1}"
        three[f"decoder/{name}"] = f"{where}.decoder.{i}"
    for theirs, ours in three.items():
        rules += _separable(theirs, ours) if separable else _layer(theirs, f"{ours}.0", f"{ours}.1")
    return rules


def _pooling_last(state: State) -> State:
    """Reorders filters: image features come first in the release's concatenation, and last here."""
    name = "classifier.aspp.project.0.weight"
    if name in state and state[name].dim() == 4:
        state[name] = state[name].roll(-(state[name].shape[1] // 5), 1)
    return state


def _xception() -> list[Rule]:
    rules: list[Rule] = []
    for i in (0, 1):
        rules += _layer(f"xception_65/entry_flow/conv1_{i + 1}", f"backbone.stem.{i}.conv", f"backbone.stem.{i}.bn")
    units = [f"entry_flow/block{i}/unit_1" for i in (1, 2, 3)]
    units += [f"middle_flow/block1/unit_{i}" for i in range(1, 17)] + [f"exit_flow/block{i}/unit_1" for i in (1, 2)]
    for number, unit in enumerate(units):
        theirs, ours = f"xception_65/{unit}/xception_module", f"backbone.blocks.{number}"
        rules += _layer(f"{theirs}/shortcut", f"{ours}.shortcut.conv", f"{ours}.shortcut.bn")
        for i in (1, 2, 3):
            for kind, short in (("depthwise", "dw"), ("pointwise", "pw")):
                where = f"{ours}.stack.conv{i}"
                rules += _layer(f"{theirs}/separable_conv{i}_{kind}", f"{where}.conv_{short}", f"{where}.bn_{short}")
    return [*rules, *_head(separable=True)]


def _edge(match: re.Match[str]) -> str:
    """The name of a layer, by its edge and its position in the edge; a separable edge has twice four modules."""
    cell, block, side, kind, which, pointwise = match.groups()
    inside = {"separable": 1, "bn_sep": 3, "atrous": 1, "bn_atr": 2}[kind]
    inside += 4 * (int(which or 1) - 1) + bool(pointwise)
    return f"backbone.cells.{cell}.edges.{2 * int(block) + (side == 'right')}.layers.{inside}"


_BEGINNING = {"1x1": "last.1", "beginning_bn": "last.2", "prev_1x1": "older.1", "prev_bn": "older.2"}
_KIND = r"(separable|bn_sep|atrous|bn_atr)_[35]x[35](?:_([12]))?(/pointwise)?"
_SEARCHED: list[Rule] = [
    (r"hnasnet/conv([0-2])", r"backbone.stem.\1.0"),
    (r"hnasnet/conv([0-2])_bn", r"backbone.stem.\1.1"),
    *((rf"hnasnet/cell_(\d+)/{theirs}", rf"backbone.cells.\1.{ours}") for theirs, ours in _BEGINNING.items()),
    (rf"hnasnet/cell_(\d+)/comb_iter_(\d)/(left|right)/{_KIND}", _edge),
    *_head(separable=False),
]
_XCEPTION = _xception()


def xception(state: State) -> State:
    return _pooling_last(_changed(state, _XCEPTION))


def auto_deeplab(state: State) -> State:
    return _pooling_last(_changed(state, _SEARCHED))


# Images in -1..1.
_RANGE: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def _zoo(file: str, classes: tuple[str, ...], size: int) -> Published:
    arguments = {"num_classes": len(classes), "align_corners": True}
    source = f"http://download.tensorflow.org/models/{file}.tar.gz (model.ckpt, its variables)"
    return Published("deeplabv3plus_xception65", arguments, classes, source, "", size=size, change=xception, **_RANGE)


def _searched(width: int) -> Published:
    # The authors published code and no checkpoint.
    source = (
        f"https://github.com/tensorflow/models, research/deeplab (nas_hnasnet of {width} filters, your own training)"
    )
    arguments = {"num_classes": len(CITYSCAPES), "width": width}
    return Published("auto_deeplab", arguments, CITYSCAPES, source, "", size=2049, change=auto_deeplab, **_RANGE)


# In the release, ADE20K's class 0 is unlabelled.
_ADE20K = ("unlabelled", *ADE20K)
ENTRIES = {
    "deeplabv3plus_xception65_voc_trainaug": _zoo("deeplabv3_pascal_train_aug_2018_01_04", VOC, 513),
    "deeplabv3plus_xception65_voc_trainval": _zoo("deeplabv3_pascal_trainval_2018_01_04", VOC, 513),
    "deeplabv3plus_xception65_cityscapes": _zoo("deeplabv3_cityscapes_train_2018_02_06", CITYSCAPES, 2049),
    "deeplabv3plus_xception65_ade20k": _zoo("deeplabv3_xception_ade20k_train_2018_05_29", _ADE20K, 513),
    **{f"auto_deeplab_{name}_cityscapes": _searched(width) for name, width in (("s", 20), ("m", 32), ("l", 48))},
}
