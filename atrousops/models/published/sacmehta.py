"""ESPNet in its authors' release, trained on CamVid and Cityscapes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from atrousops.common.class_names import CAMVID, CITYSCAPES
from atrousops.models.published.entry import Published, State


def espnet_from_bgr(state: Mapping[str, Tensor]) -> State:
    """Converts weights of an ESPNet for BGR to RGB.

    The image enters the first layer, and is concatenated with its output and that of the second stage. All weights for
    those three channels are reversed.
    """
    found = dict(state)

    def turn(name: str, axis: int, first: int) -> None:
        # Unknown entries are kept; loading reports them.
        if name not in found or found[name].dim() <= axis or found[name].shape[axis] < first + 3:
            return
        order = torch.arange(found[name].shape[axis], device=found[name].device)
        order[first : first + 3] = order[first : first + 3].flip(0)
        found[name] = found[name].index_select(axis, order)

    turn("encoder.level1.conv.weight", 1, 0)
    width = found["classifier.weight"].shape[0] if "classifier.weight" in found else 0
    for norm, first in (("encoder.b1", 16), ("encoder.b2", 128)):
        for part in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "act.weight"):
            turn(f"{norm}.{part}", 0, first)
    turn("encoder.level2_0.c1.conv.weight", 1, 16)
    turn("conv.conv.weight", 1, width + 16)
    turn("encoder.level3_0.c1.conv.weight", 1, 128)
    turn("level3_C.conv.weight", 1, 128)
    return found


def _first(count: int, state: State) -> State:
    """Removes the scores of the last class, void."""
    name = "classifier.weight"
    return {**state, name: state[name][:, :count]} if name in state and state[name].dim() == 4 else state


def camvid(state: State) -> State:
    return espnet_from_bgr(_first(len(CAMVID), state))


def cityscapes(state: State) -> State:
    return espnet_from_bgr(_first(len(CITYSCAPES), state))


def _cityscapes(q: int) -> Published:
    # From the release's test script, where blue comes first; it divides by 255 once more, as in training.
    return Published(
        "espnet",
        {"num_classes": 19, "p": 2, "q": q, "width": 20},
        CITYSCAPES,
        f"https://github.com/sacmehta/ESPNet (pretrained/decoder/espnet_p_2_q_{q}.pth)",
        "",
        mean=(73.15840149 / 255, 82.90895355 / 255, 72.3923111 / 255),
        std=(44.91483307, 46.15289307, 45.3192215),
        size=1024,
        change=cityscapes,
    )


ENTRIES = {
    "espnet_camvid": Published(
        "espnet",
        {"num_classes": 11, "p": 2, "q": 8, "width": 12},
        CAMVID,
        "https://github.com/sacmehta/ESPNet",
        "7d354a257170322086dcd4c1e89a482454cf2c9d30b085e70883878dd59301af",
        # From the training images, with the mean of their standard deviations; the network divides by 255 once more.
        mean=(0.41158, 0.42485, 0.43215),
        std=(69.8342, 72.5525, 72.0228),
        size=480,
        change=camvid,
    ),
    **{f"espnet_q{q}_cityscapes": _cityscapes(q) for q in (3, 5, 8)},
}
