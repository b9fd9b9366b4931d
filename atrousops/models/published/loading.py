"""Loads published checkpoints, and reports what does not fit."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from atrousops.common.checks import bad_choice
from atrousops.models.channels import adapted, first_layer
from atrousops.models.published.entry import Published, State
from atrousops.models.registry import WeightsError, build, load_state

_FILES = (
    "davidtvs sacmehta torchvision_files kazuto1011 hszhao jfzhang95 berkeley fyu sadeepj unpooling aquariusjay elab "
    "mmseg smp tensorflow"
)
PUBLISHED: dict[str, Published] = {
    name: entry for file in _FILES.split() for name, entry in import_module(f"{__package__}.{file}").ENTRIES.items()
}

# Keys of the network in a training checkpoint.
_INSIDE = ("state_dict", "model_state_dict", "model_state", "model")


def load_published(name: str, path: str | os.PathLike[str], **arguments: Any) -> nn.Module:
    """A network with a checkpoint published by others, in evaluation mode; its `info` is as that of `load`.

    No code in the file is run (`weights_only=True`, or .safetensors, or .npz without pickles). From a training
    checkpoint only the network is loaded, and DataParallel's prefix is removed. `save(network, path, network.info)`
    writes it in our format.

    Args:
        name: a key of PUBLISHED.
        path: the file as published; for a network of Caffe an export by layer names, LAYER.weight and LAYER.bias; for
            one of TensorFlow its variables by name.
        arguments: keyword arguments of the factory that replace the entry's, such as output_stride=8, or num_classes
            for your own training with that release's code; classes are then named "0", "1", ... With in_channels the
            RGB filters are adapted, see `channels.adapt`.

    Raises:
        FileNotFoundError: no such file.
        ArgumentError: no such checkpoint, or arguments that the factory does not accept.
        WeightsError: the sha256 differs, the file is not a state dict, or entries are missing, unknown or of another
            shape. The message names them, and the checkpoints of PUBLISHED that would fit.
    """
    if name not in PUBLISHED:
        bad_choice("load_published", "name", PUBLISHED, name)
    entry, path = PUBLISHED[name].changed(arguments), Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_published: no file {path}; it comes from {entry.source}")
    if entry.sha256:
        got = hashlib.sha256(path.read_bytes()).hexdigest()
        if not got.startswith(entry.sha256):
            raise WeightsError(
                f"load_published: {path} must have a sha256 that begins with {entry.sha256}; got {got}. "
                f"It comes from {entry.source}"
            )
    state = read(path)
    model = build(entry.network, **entry.arguments)
    changed = adjusted(entry, model, state)
    if not _same(changed, model.state_dict()):
        fitting = ", ".join(fits(state)) or "none"
        load_state(model, changed, path, f"Of the published checkpoints it would be: {fitting}.")
    load_state(model, changed, path)
    setattr(model, "info", entry.info)  # noqa: B010, as in `load`
    return model.eval()


def adjusted(entry: Published, model: nn.Module, state: Mapping[str, Tensor]) -> State:
    """Converts a published state dict to the network's; unknown entries are kept, for the error of `load_state`."""
    # Old files lack the counters of normalisations, which only training uses, and frozen ones have none.
    ours = model.state_dict()
    found = {name: ours[name] for name in ours if name.endswith("num_batches_tracked")}
    changed = entry.change(dict(state))
    # Only the layer that reads the image: in other layers three channels are not RGB.
    reader = first_layer(model)
    name = next(f"{name}.weight" for name, layer in model.named_modules() if layer is reader)
    if reader.in_channels != 3 and name in changed:
        changed[name] = adapted({name: changed[name]}, {name: ours[name]})[name]
    return found | {name: v for name, v in changed.items() if name in ours or not name.endswith("num_batches_tracked")}


def fits(state: Mapping[str, Tensor]) -> list[str]:
    """The published checkpoints that have the names and shapes of a state dict."""
    found = []
    shapes = {name: torch.empty(value.shape, device="meta") for name, value in state.items()}
    for name, entry in PUBLISHED.items():
        # Building a network takes a second. Entries are skipped if no tensor has a dimension equal to their number of
        # classes.
        if not any(len(entry.classes) in value.shape for value in entry.change(dict(shapes)).values()):
            continue
        with torch.device("meta"):
            model = build(entry.network, **entry.arguments)
            if _same(adjusted(entry, model, shapes), model.state_dict()):
                found.append(name)
    return found


def _same(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return {name: v.shape for name, v in state.items()} == {name: v.shape for name, v in wanted.items()}


def read(path: Path, op: str = "load_published") -> State:
    """The state dict of a file: PyTorch's, safetensors, or NumPy's .npz; `op` is used in messages.

    Raises:
        WeightsError: it is damaged, or something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
        # Some contain scores of the training as NumPy numbers.
        with torch.serialization.safe_globals(_NUMBERS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise WeightsError(
            f"{op}: {path} must be a state dict, whole; got {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    state = next((loaded[key] for key in _INSIDE if isinstance(loaded, dict) and key in loaded), loaded)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{op}: {path} must be a state dict; got {type(state).__name__}")
    return {name.removeprefix("module."): value for name, value in state.items()}


# Exceptions raised for a damaged or other file: for bytes that are not a pickle, nearly any type.
UNREADABLE = (
    RuntimeError, pickle.UnpicklingError, EOFError, SafetensorError, ValueError, OSError, LookupError, AttributeError,
    TypeError, AssertionError, struct.error,
)  # fmt: skip


def _numbers() -> list[Any]:
    # The pickled type of a NumPy scalar; its module has another name in NumPy 1.
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]


_NUMBERS = _numbers()
