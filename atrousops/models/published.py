"""Checkpoints that others published, as weights of ours: which network they are of, and what it expects and answers."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._meta import _VOC_CATEGORIES

from atrousops._checks import bad_value
from atrousops.models.channels import MEAN, STD
from atrousops.models.registry import Info, WeightsError, build, load_state

_CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
_VOC = ("background", *_VOC_CATEGORIES[1:])
State = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """A checkpoint.

    network, arguments: the factory, and what it is called with.
    classes: of its scores.
    mean, std, size: of Info.
    source: where the file comes from.
    sha256: the file's, or how it begins.
    change: what makes its state dict ours.
    """

    network: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    source: str
    sha256: str
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    size: int = 520
    change: Callable[[State], State] = field(default=lambda state: state)

    @property
    def info(self) -> Info:
        return Info(self.network, self.arguments, self.classes, self.mean, self.std, self.size)


def _enet_without_void(state: State) -> State:
    name = "transposed_conv.weight"
    return {**state, name: state[name][:, : len(_CAMVID)]}


def _espnet_camvid(state: State) -> State:
    name = "classifier.weight"
    return espnet_from_bgr({**state, name: state[name][:, : len(_CAMVID)]})


def espnet_from_bgr(state: Mapping[str, Tensor]) -> State:
    """Weights of an ESPNet that reads BGR as those of one that reads RGB.

    The image enters the first layer, and again beside its output and that of the second stage: everything that
    normalises or reads those three channels is turned around.
    """
    found = dict(state)

    def turn(name: str, axis: int, first: int) -> None:
        order = torch.arange(found[name].shape[axis])
        order[first : first + 3] = order[first : first + 3].flip(0)
        found[name] = found[name].index_select(axis, order)

    turn("encoder.level1.conv.weight", 1, 0)
    width = found["classifier.weight"].shape[0]
    for norm, first in (("encoder.b1", 16), ("encoder.b2", 128)):
        for part in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "act.weight"):
            turn(f"{norm}.{part}", 0, first)
    turn("encoder.level2_0.c1.conv.weight", 1, 16)
    turn("conv.conv.weight", 1, width + 16)
    turn("encoder.level3_0.c1.conv.weight", 1, 128)
    turn("level3_C.conv.weight", 1, 128)
    return found


def _torchvision(network: str, sha256: str, **arguments: Any) -> Published:
    source = f"https://download.pytorch.org/models/{network}_coco-{sha256}.pth"
    return Published(network, {"num_classes": 21, "aux": True, **arguments}, _VOC, source, sha256)


PUBLISHED: dict[str, Published] = {
    "enet_camvid": Published(
        "enet_davidtvs",
        {"num_classes": 11},
        _CAMVID,
        "https://github.com/davidtvs/PyTorch-ENet",
        "b86bb4a804407cba6fd045ec6152b973dfd053f83053f3e2fa783eef09f6c78c",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        size=480,
        # The twelfth class is void, which is never an answer.
        change=_enet_without_void,
    ),
    "espnet_camvid": Published(
        "espnet",
        {"num_classes": 11, "p": 2, "q": 8, "width": 12},
        _CAMVID,
        "https://github.com/sacmehta/ESPNet",
        "7d354a257170322086dcd4c1e89a482454cf2c9d30b085e70883878dd59301af",
        # Of the training images, the deviation being the mean of theirs; the network divides by 255 once more.
        mean=(0.41158, 0.42485, 0.43215),
        std=(69.8342, 72.5525, 72.0228),
        size=480,
        change=_espnet_camvid,
    ),
    "deeplabv3_resnet50_voc": _torchvision("deeplabv3_resnet50", "cd0a2569"),
    "deeplabv3_resnet101_voc": _torchvision("deeplabv3_resnet101", "586e9e4e"),
    "fcn_resnet50_voc": _torchvision("fcn_resnet50", "1167a1af"),
    "fcn_resnet101_voc": _torchvision("fcn_resnet101", "7ecb50ca"),
}


def load_published(name: str, path: str | os.PathLike[str]) -> nn.Module:
    """A network with a checkpoint that others published, in evaluation mode; its `info` is as that of `load`.

    The file is read without running code that it may hold. `save(network, path, network.info)` makes it one of ours.

    Args:
        name: a key of PUBLISHED.
        path: the file, as it was published.

    Raises:
        FileNotFoundError: no such file.
        ArgumentError: no such checkpoint.
        WeightsError: it is another file, by its sha256, or no state dict.
    """
    if name not in PUBLISHED:
        bad_value("load_published", "name", f"be one of {', '.join(PUBLISHED)}", repr(name))
    entry, path = PUBLISHED[name], Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_published: no file {path}; it comes from {entry.source}")
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if not got.startswith(entry.sha256):
        raise WeightsError(
            f"load_published: {path} must have a sha256 that begins with {entry.sha256}; got {got}. "
            f"It comes from {entry.source}"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise WeightsError(f"load_published: {path} must be a state dict; got {error}") from error
    model = build(entry.network, **entry.arguments)
    # Old files lack the counters of normalisations, which only training reads.
    counters = {key: value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")}
    load_state(model, {**counters, **entry.change(state)}, path)
    setattr(model, "info", entry.info)  # noqa: B010, as in `load`
    return model.eval()
