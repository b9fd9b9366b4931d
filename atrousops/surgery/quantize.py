"""Quantisation by `optimize(..., dtype=...)`: convolutions in int8 or float8, with scales from example images."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from atrousops.common.checks import bad_choice, bad_type, bad_value
from atrousops.nn.conv import FusedConv2d
from atrousops.nn.quantized import QuantizedConv2d, scale_of
from atrousops.ops.conv_quantized import LARGEST
from atrousops.surgery.convert import Left
from atrousops.surgery.report import Optimization, Quantized
from atrousops.surgery.standard import Inputs, tensors_in
from atrousops.surgery.watch import Watch, run_seeded


def checked_calibration(dtype: Any, calibration: Any) -> list[Inputs]:
    """The model's inputs, call by call.

    Raises:
        ArgumentError, ArgumentTypeError: no such dtype, no images, or images that are no tensors or not finite.
    """
    if dtype is None:
        if calibration is not None:
            bad_value("optimize", "calibration", "come with a dtype", "dtype=None", "Give dtype=torch.int8, say.")
        return []
    if dtype not in LARGEST:
        bad_choice("optimize", "dtype", LARGEST, dtype)
    remedy = "Give a tensor of images (N, C, H, W), or a list of the model's inputs, of the kind that it will see."
    if calibration is None or isinstance(calibration, (str, bytes)) or not isinstance(calibration, (Tensor, Iterable)):
        bad_type("optimize", "calibration", "be images", type(calibration).__name__, remedy)
    if isinstance(calibration, Tensor) and calibration.dim() < 2:
        bad_value("optimize", "calibration", "hold images", f"shape {tuple(calibration.shape)}", remedy)
    items = list(calibration.split(1)) if isinstance(calibration, Tensor) and len(calibration) else list(calibration)
    calls: list[Inputs] = [item if isinstance(item, tuple) else (item,) for item in items]
    if not calls:
        bad_value("optimize", "calibration", "hold an image at least", "none", remedy)
    for number, call in enumerate(calls):
        images = [each for each in call if isinstance(each, Tensor)]
        if not images:
            bad_type("optimize", f"calibration[{number}]", "be a tensor, or a tuple with one", type(call[0]).__name__)
        if any(image.is_floating_point() and not bool(image.isfinite().all()) for image in images):
            bad_value("optimize", f"calibration[{number}]", "be finite", "NaN or infinity")
    return calls


def quantize(model: nn.Module, calls: list[Inputs], dtype: torch.dtype, report: Optimization) -> None:
    """Turns convolutions of a fused model into QuantizedConv2d, in place.

    Args:
        model: made by `optimize`; only copies of it run.
        calls: of `checked_calibration`.
        dtype: a key of LARGEST.
        report: receives an entry for each convolution.
    """
    seen = _Seen(copy.deepcopy(model))
    seen.run(calls)
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, _ConvNd):
            continue
        reason = seen.why_left(name, layer)
        if reason:
            report.left.append(Left(name, type(layer).__name__, f"stays in {layer.weight.dtype}: {reason}"))
            continue
        assert isinstance(layer, FusedConv2d)
        narrow = QuantizedConv2d.of(layer, scale_of(seen.largest[name], dtype), dtype)
        report.quantized.append(Quantized(name, dtype, float(narrow.input_scale), seen.error(name, narrow)))
    kind = str(dtype).removeprefix("torch.")
    if not report.quantized:
        report.notes.append(f"no convolution could become {kind}")
        return
    wide, ours = [run_seeded(each, calls[0]) for each in (seen.model, copy.deepcopy(model))]
    errors = [rms_error(b, a) for a, b in zip(tensors_in(wide), tensors_in(ours), strict=True)]
    text = ", ".join(f"{error:.2%}" for error in errors)
    report.notes.append(f"{kind} changes the outputs for the first calibration image by {text} (rms / rms)")


def rms_error(got: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of `expected`; 0 for integers."""
    if not expected.is_floating_point() or expected.numel() == 0:
        return 0.0
    exact = expected.double()
    return float((got.double() - exact).norm() / exact.norm().clamp(min=1e-300))


class _Seen:
    """A copy of a model that runs on calibration images, and statistics of its convolutions' inputs.

    Attributes:
        largest: convolution -> the largest magnitude of its inputs.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.largest: dict[str, Tensor] = {}
        self._first: dict[str, tuple[Any, Tensor]] = {}
        self._broken: set[str] = set()
        self._ends: tuple[set[str], set[str]] = (set(), set())

    def run(self, calls: list[Inputs]) -> None:
        convs = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, _ConvNd)}
        handles = [layer.register_forward_hook(self._hook(name)) for name, layer in convs.items()]
        try:
            watch = Watch(self.model)
            run_seeded(self.model, calls[0], watch)
            self._ends = watch.ends(set(convs))
            for call in calls[1:]:
                run_seeded(self.model, call)
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def look(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            input = args[0] if args else None
            if not isinstance(input, Tensor) or not isinstance(output, Tensor) or input.numel() == 0:
                return
            largest = input.detach().abs().amax().float()
            if not bool(largest.isfinite()):
                self._broken.add(name)
            self.largest[name] = largest.maximum(self.largest.get(name, largest))
            self._first.setdefault(name, (tuple(args), output.detach().clone()))

        return look

    def why_left(self, name: str, layer: Any) -> str:
        """Why a convolution is not quantised; empty if it is."""
        first, last = self._ends
        if type(layer) is not FusedConv2d:
            return "no two-dimensional convolution that could be prepared"
        if layer.groups != 1:
            return "its channels are in groups"
        if name not in self.largest:
            return "no calibration image reached it"
        if name in self._broken:
            return "its inputs were not finite"
        if not bool(layer.weight.isfinite().all()):
            return "its weights are not finite"
        if layer.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return "its dtype"
        if name in first:
            return "it sees the image"
        return "its result is what the model returns" if name in last else ""

    def error(self, name: str, layer: QuantizedConv2d) -> float:
        """The change of a layer's result by quantisation for the first image, rms over rms."""
        args, expected = self._first.pop(name)
        with torch.no_grad():
            return rms_error(layer(*args), expected)
