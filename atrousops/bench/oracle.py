"""What rows with a dense CRF are held to, for PyTorch has none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import atrousops as ao
from atrousops.common.testing import Outputs

# Rows and columns of the part that the oracle is checked on.
PART = (slice(100, 196), slice(100, 228))


class Oracle:
    """fp64 by our kernels, which are first held to the reference in fp64 on a part of the picture.

    The yardstick is the error that the reference in plain PyTorch makes in fp32. For one filter it is that on the whole
    picture: a vertex that rounding makes or unmakes moves the pixels around it by a hundredth, in the reference as in
    ours. Iterated, that would take a minute; there it is the error on the part, times the width of the picture over
    that of the part, for positions are rounded in proportion to their size.
    """

    def __init__(self, run: Callable[..., Outputs], inputs: tuple[Tensor, ...], iterated: bool) -> None:
        self.run, self.inputs, self.iterated = run, inputs, iterated
        self.part = tuple(x[..., PART[0], PART[1]].contiguous() for x in self.inputs)
        self.found: list[Tensor] = []

    def exact(self) -> Outputs:
        part = self._run("reference", self.part, torch.float64)
        for ours, reference in zip(self._run(None, self.part, torch.float64), part, strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)
        self.found = self._run(None, self.inputs, torch.float64)
        return self.found

    def yardstick(self) -> Outputs:
        if not self.iterated:
            return self._run("reference", self.inputs, torch.float32)
        rounded = self._run("reference", self.part, torch.float32)
        part = self._run("reference", self.part, torch.float64)
        larger = self.inputs[0].shape[3] / self.part[0].shape[3]
        errors = [larger * (a.double() - b).abs().max() for a, b in zip(rounded, part)]
        return [(exact + error).float() for exact, error in zip(self.found, errors)]

    def _run(self, backend: str | None, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
        with ao.backend(backend):
            outputs = no_grad(self.run, *(x.to(dtype) for x in inputs))
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def no_grad(run: Callable[..., Outputs], *inputs: Tensor) -> Outputs:
    """run(*inputs) without gradients."""
    with torch.no_grad():
        return run(*inputs)
