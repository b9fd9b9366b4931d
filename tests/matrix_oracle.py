"""What a network says, in evaluation and training, and how far another copy of it may be off: of tests/matrix.py."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from atrousops.surgery.convert import lay_out_weights
from atrousops.surgery.standard import with_weights_moved

# Of a model's own error relative to its largest value; above it, float32 says nothing.
SURE = 0.01


def tensors(result: Any) -> list[Tensor]:
    """All tensors in a result."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def widened(value: Any) -> Any:
    """Floating-point tensors in it become float64."""
    double = lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t  # noqa: E731
    return torch.utils._pytree.tree_map(double, value)


def results(model: nn.Module, inputs: tuple) -> dict[str, Tensor]:
    """What a model in evaluation mode says."""
    torch.manual_seed(1)
    with torch.no_grad():
        return {f"output {i}": t for i, t in enumerate(tensors(model(*inputs)))}


def step(model: nn.Module, inputs: tuple) -> dict[str, Tensor]:
    """Loss, gradients and buffers of one training step, by name; the model is a copy."""
    model = copy.deepcopy(model).train()
    torch.manual_seed(1)
    found = [leaf for leaf in tensors(model(*inputs)) if leaf.requires_grad]
    draw = torch.Generator().manual_seed(2)
    loss = sum((leaf * torch.randn(leaf.shape, generator=draw).to(leaf)).mean() for leaf in found)
    loss.backward()
    grads = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | grads | dict(model.named_buffers())


class Oracle:
    """Holds tensors to the stock model's in float64, with twice the stock model's own error."""

    def __init__(
        self,
        compute: Callable[[nn.Module, tuple], dict[str, Tensor]],
        model: nn.Module,
        inputs: tuple,
        in_double: bool,
        single: bool = False,
    ) -> None:
        self.compute, self.inputs = compute, inputs
        wide = model if single else copy.deepcopy(model).double()
        self.exact = {
            name: t.double() if t.is_floating_point() else t for name, t in self._run(wide, not single).items()
        }
        self.sizes = {name: _largest(t) for name, t in self.exact.items()}
        self.largest = max(self.sizes.values(), default=0.0)
        # Against itself, in float32, a model may differ as two of PyTorch's kernels do.
        self.errors, self.share = {}, 1e-5 if single else torch.finfo(torch.float32).eps
        self.roundings: dict[str, float] = {}
        if not in_double:
            self._measure(model)
        self.in_double = in_double or not self.share <= SURE
        if self.in_double:
            self.errors, self.share = {}, 1e-7
            # What float64 itself is worth: the same with inputs that differ in the last place.
            shaken = self._run(wide, True, shake=1 + 4e-16)
            self._compare([shaken])

    def _run(self, model: nn.Module, in_double: bool, shake: float = 1.0) -> dict[str, Tensor]:
        inputs = widened(self.inputs) if in_double else self.inputs
        moved = lambda t: t * shake if isinstance(t, Tensor) and t.is_floating_point() else t  # noqa: E731
        return self.compute(model, torch.utils._pytree.tree_map(moved, inputs) if shake != 1.0 else inputs)

    def _measure(self, model: nn.Module) -> None:
        """Its own error in three ways: of each tensor, and the largest share of a tensor's size."""
        ways = [self.compute(model, self.inputs), self._run(model, False, shake=1 + torch.finfo(torch.float32).eps)]
        if isinstance(self.inputs[0], Tensor) and self.inputs[0].dim() == 4:
            last = copy.deepcopy(model)
            lay_out_weights(last)
            inputs = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in self.inputs]
            # A model's own `view` may forbid channels_last.
            with contextlib.suppress(RuntimeError):
                ways.append(self.compute(last, tuple(inputs)))
        self._compare(ways)

    def _compare(self, ways: list[dict[str, Tensor]]) -> None:
        for name, exact in self.exact.items():
            self.errors[name] = max(error_of(way[name], exact) if name in way else float("inf") for way in ways)
            # Of a tensor that is zero but for roundings, its size says nothing.
            if self.sizes[name] > 1e-6 * self.largest:
                self.share = max(self.share, self.errors[name] / self.sizes[name])

    def bound(self, name: str) -> float:
        """How far a tensor may be off."""
        own = max(self.errors.get(name, 0.0), self.roundings.get(name, 0.0))
        return 2 * max(own, self.share * self.sizes[name], 1e-3 * self.share * self.largest)

    def allow_folding(self, model: nn.Module) -> None:
        """From here on weights may be off by a rounding."""
        rounded = with_weights_moved(copy.deepcopy(model).double() if self.in_double else model)
        got = self._run(rounded, self.in_double)
        self.roundings = {name: error_of(got[name], exact) for name, exact in self.exact.items() if name in got}

    def verdict(self, model: nn.Module) -> str:
        """ok, or how it differs."""
        if not self.share <= SURE:
            return f"chaotic: roundings change the model's own results by a share of {self.share:.1e}"
        got = self._run(copy.deepcopy(model).double() if self.in_double else model, self.in_double)
        if got.keys() != self.exact.keys():
            return f"wrong: {sorted(got.keys() ^ self.exact.keys())[:3]} on one side only"
        for name, exact in self.exact.items():
            mine = got[name]
            if mine.shape != exact.shape:
                return f"wrong: {name} is {tuple(mine.shape)}, not {tuple(exact.shape)}"
            if not mine.is_floating_point() and not torch.equal(mine, exact):
                return f"wrong: {name} differs"
            bound = self.bound(name)
            if not error_of(mine, exact) <= bound:
                return f"wrong: {name} is off by {error_of(mine, exact):.1e}, at most {bound:.1e} would do"
            if name.startswith("output") and not _same_labels(mine, exact, bound):
                return f"wrong: labels of {name}"
        return "ok"


def _largest(t: Tensor) -> float:
    return t.abs().max().item() if t.numel() and t.is_floating_point() else 0.0


def error_of(got: Tensor, exact: Tensor) -> float:
    """The largest difference; infinite where shapes differ."""
    if not exact.is_floating_point() or not exact.numel():
        return 0.0
    if got.shape != exact.shape:
        return float("inf")
    gap = (got.double() - exact).abs()
    # The same infinity or NaN on both sides is no difference.
    same = (got == exact) | (got.isnan() & exact.isnan())
    return gap.masked_fill(same, 0.0).max().item()


def _same_labels(got: Tensor, exact: Tensor, bound: float) -> bool:
    if exact.dim() < 2 or exact.shape[1] < 2 or not exact.is_floating_point() or not exact.numel():
        return True
    best = exact.topk(2, dim=1).values
    sure = best.select(1, 0) - best.select(1, 1) > 2 * bound
    return bool((got.argmax(1) == exact.argmax(1))[sure].all())
