"""ENet in davidtvs' PyTorch-ENet, trained on CamVid."""

from __future__ import annotations

from atrousops.common.class_names import CAMVID
from atrousops.models.published.entry import Published, State


def change(state: State) -> State:
    """Removes the twelfth class, void, which is never predicted."""
    name = "transposed_conv.weight"
    return {**state, name: state[name][:, : len(CAMVID)]} if name in state and state[name].dim() == 4 else state


ENTRIES = {
    "enet_camvid": Published(
        "enet_davidtvs",
        {"num_classes": 11},
        CAMVID,
        "https://github.com/davidtvs/PyTorch-ENet",
        "b86bb4a804407cba6fd045ec6152b973dfd053f83053f3e2fa783eef09f6c78c",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        size=480,
        change=change,
    )
}
