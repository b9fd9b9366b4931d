"""Other programs that run a network on a CPU: it is written to an ONNX file, which OpenVINO and onnxruntime read."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from atrousops.bench.registry import Setting
from atrousops.common.testing import Ready, Run
from atrousops.engine.export import INPUT, write_onnx

OPENVINO, ONNXRUNTIME = "OpenVINO", "onnxruntime"
# What each needs, and the precisions that it computes in.
PACKAGES = {OPENVINO: ("onnxscript", "openvino"), ONNXRUNTIME: ("onnxscript", "onnxruntime")}
PRECISIONS = {OPENVINO: {"fp32": "f32", "bf16": "bf16"}, ONNXRUNTIME: {"fp32": "f32"}}
# Times PyTorch's own error at the row's dtype that theirs may be.
TIMES = 4.0
HOW = "pip install 'atrousops[export]'"


class File:
    """A network for images of one size as an ONNX file; written when it is first asked for, gone with this object.

    The size is fixed, which is in the favour of those who run it; and writing takes a third of the time.
    """

    def __init__(self, network: nn.Module, image: Tensor, outputs: Sequence[str]) -> None:
        # Of values that are rounded to the row's dtype already.
        self.network, self.outputs = network.float(), outputs
        self.image = image.float().contiguous()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def path(self) -> Path:
        """Where it is."""
        if self._folder is None:
            folder = tempfile.TemporaryDirectory(prefix="atrousops-bench-")
            with torch.no_grad(), warnings.catch_warnings():
                # Of the exporter, about its own calls.
                warnings.simplefilter("ignore")
                program = torch.export.export(self.network, (self.image,), strict=False)
                write_onnx(program, self.image, Path(folder.name, "network.onnx"), self.outputs)
            self._folder = folder
        return Path(self._folder.name, "network.onnx")


def incumbents(network: nn.Module, image: Tensor, outputs: Sequence[str], at: Setting) -> dict[str, Ready]:
    """Those that are installed and compute at the row's dtype; they give the first output, and compute all.

    Args:
        network: in evaluation mode, returns as many tensors as there are outputs; it is not used otherwise.
        image: (N, C, H, W) at the row's dtype.
        outputs: their names in the file.
        at: on a CPU.
    """
    file = File(network, image, outputs)
    ways = {OPENVINO: _openvino, ONNXRUNTIME: _onnxruntime}
    return {name: partial(ways[name], file, at.dtype) for name in _of(at) if _installed(name)}


def missing(at: Setting) -> dict[str, str]:
    """Those that would compute at the row's dtype, but are not installed; and what would install them."""
    return {name: HOW for name in _of(at) if not _installed(name)}


def _of(at: Setting) -> list[str]:
    return [name for name, precisions in PRECISIONS.items() if at.dtype in precisions]


def _installed(name: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in PACKAGES[name])


def _openvino(file: File, dtype: str) -> Run:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[OPENVINO][dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.compile_model(str(file.path()), "CPU", settings).create_infer_request()
    image = file.image.numpy()

    def run() -> Tensor:
        # Neither the image nor the results are copied.
        found = request.infer([image], share_inputs=True, share_outputs=True)
        return torch.from_numpy(found[0])

    return run


def _onnxruntime(file: File, dtype: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads spin while it runs, and not into the time of the next contender.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(file.path()), options, providers=["CPUExecutionProvider"])
    images = {INPUT: file.image.numpy()}
    return lambda: torch.from_numpy(session.run(list(file.outputs), images)[0])
