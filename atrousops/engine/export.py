"""A trained network as a file that other programs run: ONNX, or a PyTorch program that needs no atrousops."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from atrousops.common.checks import ArgumentError, bad_value
from atrousops.common.files import write_atomically
from atrousops.models.registry import Info
from atrousops.nn import CRFasRNN, DenseCRF
from atrousops.ops import decompose

# The largest difference allowed, relative to the largest score.
TOLERANCE = 1e-4
_SUFFIXES = (".onnx", ".pt2")
INPUT, OUTPUT = "image", "scores"


class Difference(NamedTuple):
    """The difference between an exported file's scores and the network's, for images of one shape."""

    shape: tuple[int, ...]
    largest: float


class Scores(nn.Module):
    """Wraps a network to return only its scores."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        scores = self.network(image)
        return scores["out"] if isinstance(scores, dict) else scores


def export(
    network: nn.Module,
    path: str | os.PathLike[str],
    size: Sequence[int] = (256, 256),
    channels: int = 3,
    info: Info | None = None,
) -> None:
    """Writes a network as a file for inference, for batches and images of any size.

    scores = network(image)["out"], image (N, C, H, W) normalised in float32, scores (N, L, H, W). A name that ends in
    .onnx gives an ONNX file, which needs the package onnxscript; .pt2 a program for `torch.export.load`, in PyTorch's
    own operators. The normalisation and the classes are in the ONNX file's metadata and in the program's "info.json".

    Args:
        network: in evaluation mode; with our layers, converted or optimised ones, or any of PyTorch's.
        path: of the file, which is replaced atomically.
        size: (H, W) of the images used for tracing; the file accepts other sizes.
        channels: C.
        info: the network's `info`.

    Raises:
        ArgumentError: another suffix, a network in training mode, or one that cannot be exported: the size of the dense
            CRF's hash table, or the number of objects, depends on the image.
        ImportError: onnxscript is missing.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        bad_value("export", "path", f"end in {' or '.join(_SUFFIXES)}", f"{path.name!r}")
    if network.training:
        bad_value("export", "network", "be in evaluation mode", "training mode", "Call network.eval().")
    _check_kind(network)
    image = torch.zeros(2, channels, *size)
    anything = torch.export.Dim.DYNAMIC
    with torch.no_grad(), warnings.catch_warnings():
        # Warnings of the exporter about its own calls.
        warnings.simplefilter("ignore")
        shapes = {0: anything, 2: anything, 3: anything}
        program = torch.export.export(Scores(network), (image,), dynamic_shapes=(shapes,), strict=False)
        text = json.dumps(None if info is None else dataclasses.asdict(info))
        if path.suffix == ".onnx":
            write_onnx(program, image, path, info=text)
        else:
            archive = io.BytesIO()
            torch.export.save(decompose(program), archive, extra_files={"info.json": text})
            write_atomically(path, lambda file: Path(file).write_bytes(archive.getvalue()))


def _check_kind(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, DenseCRF | CRFasRNN):
            raise ArgumentError(
                f"export: network must have no dense CRF; got one at {name or 'its root'}. The lattice of the CRF is a "
                "hash table whose size each image decides. Export the network below it, and refine its scores with "
                "atrousops.DenseCRF."
            )
    if hasattr(network, "objects"):
        raise ArgumentError(
            f"export: network must give every pixel scores; got {type(network).__name__}, which finds objects, as many "
            "as each image has. Run it in PyTorch, or compile it with torch.compile."
        )


def write_onnx(
    program: torch.export.ExportedProgram,
    image: Tensor,
    path: Path,
    outputs: Sequence[str] = (OUTPUT,),
    info: str = "null",
) -> None:
    """Writes an exported program of one image as an ONNX file, which is replaced once it is whole.

    Raises:
        ImportError: onnxscript is missing.
    """
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError("export: ONNX files need the package onnxscript: pip install 'atrousops[export]'") from error
    made: Any = torch.onnx.export(
        program, (image,), dynamo=True, verbose=False, input_names=[INPUT], output_names=list(outputs)
    )
    made.model.metadata_props["atrousops"] = info
    write_atomically(path, lambda file: made.save(file, external_data=False))


def differences(network: nn.Module, path: str | os.PathLike[str], shapes: Sequence[Sequence[int]]) -> list[Difference]:
    """Runs an exported file on random images, by onnxruntime or PyTorch, and compares its scores with the network's.

    Args:
        network: the network that was exported.
        path: of the file.
        shapes: (N, C, H, W) of the images.

    Returns:
        The largest difference for each shape, relative to the largest score.

    Raises:
        ImportError: onnxruntime is missing.
    """
    run = _runner(Path(path))
    scores, found = Scores(network), []
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        image = torch.randn(*shape, generator=generator)
        with torch.no_grad():
            wanted, got = scores(image), run(image)
        largest = (got - wanted).abs().max() / wanted.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        found.append(Difference(tuple(shape), float(largest) if got.shape == wanted.shape else float("inf")))
    return found


def _runner(path: Path) -> Any:
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ImportError("export: a check needs the package onnxruntime: pip install 'atrousops[export]'") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run([OUTPUT], {INPUT: image.numpy()})[0])
