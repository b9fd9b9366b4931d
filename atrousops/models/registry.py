"""Networks by name, and weights, which are read without running code from the file."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from atrousops.common import plugins
from atrousops.common.checks import ArgumentError, ArgumentTypeError, bad_choice, bad_value, meant
from atrousops.common.files import write_atomically
from atrousops.models import deeplab, deeplab_v3plus, fcn
from atrousops.models.auto_deeplab import auto_deeplab
from atrousops.models.crf import crfrnn, normalise_crfs
from atrousops.models.deconvnet import deconvnet
from atrousops.models.deeplab_cascade import deeplabv3_cascade
from atrousops.models.deeplab_v1 import deeplabv1
from atrousops.models.deeplab_v2 import deeplabv2
from atrousops.models.dilated_vgg import dilated_vgg16
from atrousops.models.enet import enet, enet_davidtvs
from atrousops.models.espnet import espnet
from atrousops.models.fcn_resnet import fcn_resnet50, fcn_resnet101
from atrousops.models.gcn import gcn
from atrousops.models.hypercolumns import hypercolumns
from atrousops.models.instance_embedding import metric_learning
from atrousops.models.lraspp import lraspp_mobilenet_v3_large
from atrousops.models.mask_rcnn import mask_rcnn
from atrousops.models.msd import msd
from atrousops.models.pspnet import pspnet
from atrousops.models.segnet import segnet
from atrousops.models.segnet_basic import segnet_basic
from atrousops.models.unet import unet
from atrousops.nn import DenseCRF

_FACTORIES: tuple[Callable[..., nn.Module], ...] = (
    auto_deeplab,
    crfrnn,
    deeplabv1,
    deeplabv2,
    deeplabv3_cascade,
    deeplab.deeplabv3,
    deeplab.deeplabv3_mobilenet_v3_large,
    deeplab.deeplabv3_resnet101,
    deeplab.deeplabv3_resnet50,
    deeplab_v3plus.deeplabv3plus,
    deeplab_v3plus.deeplabv3plus_mobilenet_v3_large,
    deeplab_v3plus.deeplabv3plus_resnet101,
    deeplab_v3plus.deeplabv3plus_resnet50,
    deeplab_v3plus.deeplabv3plus_efficientnet_lite2,
    deeplab_v3plus.deeplabv3plus_xception65,
    dilated_vgg16,
    enet,
    enet_davidtvs,
    espnet,
    fcn.fcn16s,
    fcn.fcn32s,
    fcn.fcn8s,
    fcn_resnet101,
    fcn_resnet50,
    deconvnet,
    gcn,
    hypercolumns,
    lraspp_mobilenet_v3_large,
    mask_rcnn,
    metric_learning,
    msd,
    pspnet,
    segnet,
    segnet_basic,
    unet,
)
NETWORKS = {factory.__name__: factory for factory in _FACTORIES}
# Entry points of other packages: name = "package.module:factory".
GROUP = "atrousops.networks"


@dataclass(frozen=True)
class Shipped:
    """sha256 of atrousops/weights/NAME.safetensors; crf: arguments of DenseCRF tuned for it on training images;
    odd_sides: as in `Info`."""

    sha256: str
    crf: dict[str, Any] = field(default_factory=dict)
    odd_sides: bool = False


SHIPPED: dict[str, Shipped] = {
    "deeplabv3plus_efficientnet_lite2_voc_person": Shipped(
        "2636829215ef0700c15d732c70f48787bcc5826f708a9507d2e647c7a97c55a7",
        crf={"bilateral_compat": 2.0, "gaussian_compat": 3.0, "bilateral_sxy": 80.0, "bilateral_srgb": 3.0},
        odd_sides=True,
    ),
    "unet_efficientnet_lite0_nuclei": Shipped("b4b52db7c119768decd6e2dfff646836a75852c39758133964ff75d25801728c"),
    "unet_nuclei": Shipped("3c6209022c854ef86ed0040aa2addebbfe61d0548ddd55ada4179a5a853d352d"),
}

_FOLDER = Path(__file__).resolve().parents[1] / "weights"
_KEY = "atrousops"
_UNFINISHED = "To convert a checkpoint to weights, run `train RECIPE --resume --set schedule.stop=1`."
_WRITTEN = "`atrousops train` writes one; a checkpoint published by others also needs its name (--model)."


class WeightsError(ArgumentError):
    """A file of weights that is damaged, has another format, or does not fit the network."""


@dataclass(frozen=True)
class Info:
    """The information needed to use a trained network; stored in the header of its file.

    network, arguments: the factory's name and keyword arguments.
    classes: names, in the order of the scores.
    mean, std: of the image in 0..1, a number for each channel; the input is (image - mean) / std.
    size: the longest side of the training images, in pixels.
    crf: keyword arguments of DenseCRF tuned for its scores, if any.
    scale: the stored number in an image file that counts as 1, or None; see `atrousops.data.bands.read_picture`.
    odd_sides: the network should see images of 32 n + 1 pixels, as `MultiScale` explains.
    """

    network: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    crf: dict[str, Any] = field(default_factory=dict)
    scale: float | None = None
    odd_sides: bool = False

    def dense_crf(self) -> DenseCRF:
        """The dense CRF that refines this network's scores."""
        return DenseCRF(**self.crf)


def list(kind: str = "weights") -> tuple[str, ...]:
    """The names of the weights that come with the package, for `load`, or of the "networks", for `build`.

    Raises:
        ArgumentError: kind is something else.
    """
    if kind not in ("weights", "networks"):
        bad_value("list", "kind", 'be "weights" or "networks"', repr(kind))
    return tuple(SHIPPED) if kind == "weights" else (*NETWORKS, *sorted({*plugins.names(GROUP)} - {*NETWORKS}))


def factory(name: str) -> Callable[..., nn.Module]:
    """The factory of a network: one of ours, or one that an installed package adds by an entry point.

    Raises:
        ArgumentError: there is no such factory, or the package cannot be imported.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if name not in list("networks"):
        bad_choice("build", "name", list("networks"), name)
    found = plugins.load(GROUP, name)
    if not callable(found):
        bad_value("build", "name", f"be of a factory in {GROUP}", f"{name}, which is {type(found).__name__}")
    return cast(Callable[..., nn.Module], found)


def build(name: str, **arguments: Any) -> nn.Module:
    """A network by the name of its factory, with fresh weights.

    Raises:
        ArgumentError, ArgumentTypeError: there is no such network, or it does not accept an argument.
    """
    make = factory(name)
    try:
        return make(**arguments)
    except TypeError as error:
        if isinstance(error, ArgumentTypeError):
            raise
        known = inspect.signature(make).parameters
        remedy = next((meant(key, known) for key in arguments if key not in known), "")
        bad_value(name, "arguments", "be those of the network", f"{arguments}: {error}", remedy)


def load(name: str | os.PathLike[str], **arguments: Any) -> nn.Module:
    """A trained network, in evaluation mode; its `info` describes its input and its classes.

    Args:
        name: one of `list()`, or the path of a file that `save` or `atrousops train` wrote.
        arguments: keyword arguments of the factory that replace those of training, such as output_stride=8.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: the file is damaged, is something else, or does not fit the network.
    """
    shipped, path = SHIPPED.get(str(name)), locate(name)
    state, info = _read(path)
    if info is None:
        raise WeightsError(f"load: {path} does not say which network it is of. Use load_weights on a network instead.")
    if shipped is not None:
        info = dataclasses.replace(info, crf=shipped.crf, odd_sides=shipped.odd_sides)
    model = normalise_crfs(build(info.network, **{**info.arguments, **arguments}), info.mean, info.std)
    load_state(model, state, path)
    setattr(model, "info", info)  # noqa: B010, for a Module takes no attribute of this type by declaration
    return model.eval()


def locate(name: str | os.PathLike[str]) -> Path:
    """The file of weights that come with the package, by name, or a file given by its path.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: the package's file has another sha256.
    """
    shipped = SHIPPED.get(str(name))
    path = _FOLDER / f"{name}.safetensors" if shipped is not None else Path(name)
    if not path.is_file():
        known = ", ".join(SHIPPED) or "none"
        near = meant(name, SHIPPED)
        raise FileNotFoundError(f"load: no file {path}; weights that come with the package: {known}. {near}".strip())
    if shipped is not None:
        _check_hash(path, shipped.sha256)
    return path


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Loads a safetensors file of any dtype into a network; returns the network.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: the file is damaged, is something else, or does not fit the network.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"load_weights: no file {path}")
    load_state(model, _read(Path(path))[0], Path(path))
    return model


def save(model: nn.Module, path: str | os.PathLike[str], info: Info) -> str:
    """Writes weights as safetensors, matrices in fp16, and returns the file's sha256."""
    state = {}
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value = value.half() if value.dim() > 1 else value.float()
        state[name] = value.contiguous()
    # Only one entry: safetensors writes several in arbitrary order, and the hash would not be reproducible.
    # Without a scale and odd sides the header is the same as in versions without these fields.
    later = {"scale": None, "odd_sides": False}
    values = {key: value for key, value in dataclasses.asdict(info).items() if key not in later or value != later[key]}
    header = {_KEY: json.dumps(values)}
    # Not by save_file, whose error on a full disk is not an OSError.
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(safetensors_bytes(state, metadata=header)))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _check_hash(path: Path, wanted: str) -> None:
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != wanted:
        raise WeightsError(f"load: {path} must have the sha256 {wanted}; got {got}. Reinstall the package.")


def header_of(path: Path) -> Info | None:
    """The network's info in the header of a safetensors file; None for any other file."""
    return _read(path)[1] if path.suffix == ".safetensors" else None


def _read(path: Path) -> tuple[dict[str, Tensor], Info | None]:
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        # PyTorch's files are zip archives.
        got = f"one of PyTorch's. {_UNFINISHED}" if zipfile.is_zipfile(path) else f"{error}."
        raise WeightsError(f"load: {path} must be a whole safetensors file; got {got} {_WRITTEN}") from error
    if header is None:
        return state, None
    try:
        values: dict[str, Any] = json.loads(header)
        for key in ("classes", "mean", "std"):
            values[key] = tuple(values[key])
        return state, Info(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"load: {path} must describe its network in its header; got {error}.") from error


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: Path, remedy: str = "") -> None:
    """Loads a state dict; raises WeightsError, which says what does not fit and names the file."""
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    shapes = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if missing or unknown or shapes:
        parts = []
        if missing:
            parts.append(f"{len(missing)} missing, such as {missing[0]} {tuple(wanted[missing[0]].shape)}")
        if unknown:
            parts.append(f"{len(unknown)} unknown, such as {unknown[0]} {tuple(state[unknown[0]].shape)}")
        if shapes:
            first = shapes[0]
            pair = f"{tuple(state[first].shape)} for {tuple(wanted[first].shape)}"
            parts.append(f"{len(shapes)} of another shape, such as {first} {pair}")
        text = f"load: {path} must hold the weights of {type(model).__name__}; got {'; '.join(parts)}."
        raise WeightsError(f"{text} {remedy}".rstrip())
    model.load_state_dict(state)
