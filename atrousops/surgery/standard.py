"""Holding the optimised copy of a model to the model: inputs for it, and how far its outputs may be off."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from atrousops.surgery.watch import run_seeded

# Batch and side lengths of images that are tried where none is given: of even and odd sizes, then such as networks
# with a fixed one or with five halvings want.
_SIZES = ((2, 64, 96), (1, 97, 65), (1, 128, 64), (1, 224, 224), (1, 256, 256))
_COUNT = 2

Inputs = tuple[Any, ...]


def made_inputs(model: nn.Module) -> list[Inputs]:
    """Random inputs of two sizes that the model takes, by the channels of its first convolution; none if none does."""
    first = next((m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    weight = getattr(first, "weight", None)
    if first is None or not isinstance(weight, Tensor) or not weight.is_floating_point():
        return []
    rank, found = len(first.kernel_size), list[Inputs]()
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in _SIZES:
        sizes = {1: (height * width,), 2: (height, width), 3: (16, height // 2, width // 2)}[rank]
        image = torch.randn(batch, first.in_channels, *sizes, generator=generator)
        inputs = (image.to(weight),)
        if len(found) < _COUNT and (batch < 224 or not found) and _takes(model, inputs):
            found.append(inputs)
    return found


def _takes(model: nn.Module, inputs: Inputs) -> bool:
    try:
        run_seeded(copy.deepcopy(model), inputs)
    # A model may raise any exception for an input that it does not take.
    except Exception:
        return False
    return True


class Standard:
    """What the model returns for some inputs, and how much roundings change of it.

    The error that the model itself makes against itself in fp64, on oneDNN's kernels, on PyTorch's own, and with inputs
    or weights changed by one rounding, as folding rounds them, is the largest of its runs and outputs, in units of each
    output's largest value. The copy may be off by twice as much and a few roundings.
    """

    def __init__(self, model: nn.Module, inputs: list[Inputs]) -> None:
        self.model, self.inputs = model, inputs
        self.expected = self._outputs(copy.deepcopy(model), inputs)
        exact = self._exact()
        moved = self._outputs(copy.deepcopy(model), [pytree.tree_map(_moved, given) for given in inputs])
        rounded = self._outputs(with_weights_moved(model), inputs)
        summed = self._without_onednn(inputs)
        self.exact = self.expected if exact is None else exact
        self.error = 0.0
        self.flips = 0.0
        for other in [self.expected, moved, rounded, summed]:
            for got, true in zip(tensors_in(other), tensors_in(self.exact), strict=False):
                if got.shape == true.shape:
                    self.error = max(self.error, _relative(got, true))
                    self.flips = max(self.flips, _differing(got, true))

    def _without_onednn(self, inputs: list[Inputs]) -> Any:
        before = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        try:
            return self._outputs(copy.deepcopy(self.model), inputs)
        finally:
            torch._C._set_mkldnn_enabled(before)

    def _exact(self) -> Any:
        wide = copy.deepcopy(self.model).double()
        try:
            found = self._outputs(wide, [pytree.tree_map(_wide, given) for given in self.inputs])
        # Code that makes float32 tensors of its own fails in fp64 in as many ways as there are.
        except Exception:
            return None
        same = [t.shape for t in tensors_in(found)] == [t.shape for t in tensors_in(self.expected)]
        return found if same else None

    @staticmethod
    def _outputs(model: nn.Module, inputs: list[Inputs]) -> Any:
        return [run_seeded(model, given) for given in inputs]

    def disagreement(self, result: nn.Module) -> str:
        """What is wrong with what the copy returns; empty if nothing is."""
        try:
            outputs = self._outputs(copy.deepcopy(result), self.inputs)
        # A view of a map that lies otherwise, say: the copy is then none.
        except Exception as error:
            return f"it raises {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ours, theirs, true = (_leaves(each) for each in (outputs, self.expected, self.exact))
        structures = [str(pytree.tree_structure(each)) for each in (outputs, self.expected)]
        if len(set(structures)) > 1 or not len(ours) == len(theirs) == len(true):
            return "it returns another structure"
        for got, expected, exact in zip(ours, theirs, true, strict=True):
            if isinstance(expected, Tensor) and (reason := self._differs(got, expected, exact)):
                return reason
        return ""

    def _differs(self, got: Any, expected: Tensor, exact: Tensor) -> str:
        if not isinstance(got, Tensor) or got.shape != expected.shape or got.dtype != expected.dtype:
            return f"a result of {_kind(got)} where the model has {_kind(expected)}"
        if expected.is_contiguous() and not got.is_contiguous():
            return "a result that is not contiguous, where the model's is"
        if not expected.is_floating_point():
            share = _differing(got, exact)
            return "" if share <= 2 * self.flips else f"{share:.2%} other integers"
        error, bound = _relative(got, exact), 2 * self.error + 8 * torch.finfo(got.dtype).eps
        if torch.equal(got.isfinite(), expected.isfinite()) and error <= bound:
            return ""
        return f"an error of {error:.1e} of the largest value, where roundings explain {bound:.1e}"


def with_weights_moved(model: nn.Module) -> nn.Module:
    """A copy whose parameters are changed by one rounding, up or down."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.copy_(_moved(parameter))
    return moved


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors of an output, in lists, dicts and objects."""
    return [leaf for leaf in _leaves(outputs) if isinstance(leaf, Tensor)]


def _leaves(outputs: Any) -> list[Any]:
    """What is in an output: of lists, dicts and the like, and of objects that keep it in attributes."""
    return [leaf for part in pytree.tree_leaves(outputs) for leaf in ([part] if _plain(part) else _inner(part))]


def _plain(value: Any) -> bool:
    return isinstance(value, Tensor) or not dataclasses.is_dataclass(value)


def _inner(value: Any) -> list[Any]:
    return _leaves([getattr(value, field.name) for field in dataclasses.fields(value)])


def _relative(got: Tensor, exact: Tensor) -> float:
    if not got.is_floating_point() or got.numel() == 0:
        return 0.0
    exact = exact.double()
    fine = exact.isfinite() & got.isfinite()
    largest = exact[fine].abs().max().item() if bool(fine.any()) else 0.0
    error = (got.double() - exact)[fine].abs().max().item() if bool(fine.any()) else 0.0
    return error / largest if largest else (math.inf if error else 0.0)


def _differing(got: Tensor, exact: Tensor) -> float:
    if got.is_floating_point() or got.numel() == 0:
        return 0.0
    return (got != exact).double().mean().item()


def _moved(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    signs = torch.rand(value.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    eps = torch.finfo(value.dtype).eps
    return value * torch.where(signs.to(value.device), 1 + eps, 1 - eps).to(value.dtype)


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _kind(value: Any) -> str:
    return f"shape {tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
