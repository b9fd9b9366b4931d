"""The authors' ENet for Cityscapes, converted from Torch7 to a state dict by bermanmaxim's Enet-PyTorch.

Names are the positions of modules in Torch7's containers, from 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from atrousops.common.class_names import CITYSCAPES
from atrousops.models.published.entry import Published, Rule, State, renamed

# For stages 2 and 3, after the block that halves the map.
_MIDDLE = ("regular", "dilated", "asymmetric", "dilated", "regular", "dilated", "asymmetric", "dilated")
_DOWN = {"downsample1_0": 0.01, **{f"regular1_{i}": 0.01 for i in range(1, 5)}, "downsample2_0": 0.1}
_CODING = {
    **_DOWN,
    **{f"{kind}2_{i}": 0.1 for i, kind in enumerate(_MIDDLE, start=1)},
    **{f"{kind}3_{i}": 0.1 for i, kind in enumerate(_MIDDLE)},
}
_DECODING = ("upsample4_0", "regular4_1", "regular4_2", "upsample5_0", "regular5_1")


def _block(position: int, name: str) -> Iterator[Rule]:
    thin = int(name.startswith("asymmetric"))
    layers = ["ext_conv1.0", "ext_conv1.1", "ext_conv1.2", *(f"ext_conv2.{i}" for i in range(3 + thin))]
    for i, layer in enumerate([*layers, "ext_conv3.0", "ext_conv3.1"]):
        yield rf"{position}\.0\.0\.{i}\.(.+)", rf"{name}.{layer}.\1"
    yield rf"{position}\.0\.1\.([12])\.(.+)", lambda m: f"{name}.main_conv1.{int(m[1]) - 1}.{m[2]}"
    yield rf"{position}\.2\.(.+)", rf"{name}.out_prelu.\1"


def _rules() -> list[Rule]:
    start = {"0.0": "main_branch", "2": "batch_norm", "3": "out_prelu"}
    rules: list[Rule] = [(rf"{where}\.(\w+)", rf"initial_block.{name}.\1") for where, name in start.items()]
    for position, name in enumerate((*_CODING, *_DECODING), start=4):
        rules += _block(position, name)
    return [*rules, (r"31\.(.+)", r"transposed_conv.\1")]


_RULES = _rules()


def change(state: State) -> State:
    """Removes the first class (unlabelled), and applies the scaling of Torch7's dropout.

    Torch7 does not scale in training; in evaluation it multiplies all channels by 1 - p.
    """
    found = renamed(state, _RULES)
    for name, dropout in _CODING.items():
        for part in ("weight", "bias"):
            if (key := f"{name}.ext_conv3.1.{part}") in found:
                found[key] = found[key] * (1 - dropout)
    for key, axis in (("transposed_conv.weight", 1), ("transposed_conv.bias", 0)):
        if key in found and found[key].dim() > axis:
            found[key] = found[key].narrow(axis, 1, max(0, found[key].shape[axis] - 1)).clone()
    return found


ENTRIES = {
    "enet_cityscapes": Published(
        "enet",
        {"num_classes": 19, "decoder_prelu": True},
        CITYSCAPES,
        "https://github.com/e-lab/ENet-training, converted by https://github.com/bermanmaxim/Enet-PyTorch",
        "",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        size=1024,
        change=change,
    )
}
