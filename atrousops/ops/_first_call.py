"""Operators that PyTorch does not have run on every GPU; without a verdict, their first call checks a small case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from atrousops import reference
from atrousops.common.checks import DeviceError
from atrousops.common.testing import disagreement
from atrousops.dispatch import backends, choice, triton_library, verdicts
from atrousops.dispatch.devices import constant_in_graphs, is_captured
from atrousops.ops._routes import is_plain

_PIXELS, _LABELS, _ITERATIONS = 96, 3, 2

# The problem, or "", by backend, operator and device.
_problems: dict[tuple[str, str, str], str] = {}
# A new verdict replaces earlier results.
choice.on_forget.append(_problems.clear)


def own(op: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether one of our kernels runs "permutohedral" or "mean_field".

    Raises:
        DeviceError: it computed wrong values on this GPU.
    """
    name = backends.choose(op, device, dtype)
    if name not in backends.COMPILED:
        return False
    if device.type in triton_library.KEYS and backends.forced() is None:
        insist(name, op, str(device))
    return True


@constant_in_graphs
def insist(backend: str, op: str, device: str) -> bool:
    """Raises DeviceError if an operator is wrong on a GPU, else returns True. The first call takes milliseconds."""
    if _problems.get((backend, op, device)) == "" or not verdicts.there_is(device):
        return True
    key = (backend, op, verdicts.numbered(device))
    problem = _problems.get(key)
    if problem is None:
        problem = _on_file(*key)
    if problem is None:
        if not _may_look(torch.device(device)):
            return True
        problem = look(*key[1:])
    _problems[key] = problem
    if problem:
        gpu = verdicts.identity(backend, key[2]).gpu
        raise DeviceError(
            f"{op}: our {backend} kernels are wrong on {gpu} ({key[2]}): {problem}. Run it in plain PyTorch, with "
            f'atrousops.backend("reference"), or on the CPU; `atrousops selfcheck` says which kernels are right there.'
        )
    return True


def _on_file(backend: str, op: str, device: str) -> str | None:
    finding = verdicts.finding(backend, op, device)
    if finding is None:
        return None
    return "" if finding.ok else finding.reason


def _may_look(device: torch.device) -> bool:
    # Not while kernels are recorded instead of run, nor under a tracer or mode.
    return is_plain(()) and not is_captured(device)


def look(op: str, device: str) -> str:
    """The error of a small call on a device compared with the reference in fp64 on the CPU, or ""."""
    kind = torch.device(device).type
    with torch._C.DisableTorchFunction(), torch.no_grad(), torch.autocast(kind, enabled=False):
        # No random numbers, to leave the caller's generator unchanged.
        features, scores = _waves(3, 2.0), _waves(_LABELS, 4.0)
        run, expected = (_filter, _reference_filter) if op == "permutohedral" else (_field, _reference_field)
        ours = run(features.to(device), scores.to(device)).to("cpu")
        return disagreement(ours, expected(features.double(), scores.double()), expected(features, scores)) or ""


def _waves(channels: int, height: float) -> Tensor:
    steps = torch.arange(channels * _PIXELS, dtype=torch.float32, device="cpu")
    return (height * (0.37 * steps).sin()).view(1, channels, _PIXELS)


def _potts(like: Tensor) -> Tensor:
    return torch.full((_LABELS,), -1.0, dtype=like.dtype, device=like.device)


def _operands(lattice: Sequence[Tensor]) -> list[Tensor]:
    offsets, weights, *rest = lattice
    return [weights, weights, offsets, *rest]


def _filter(features: Tensor, scores: Tensor) -> Tensor:
    lattice = torch.ops.atrousops.permutohedral_lattice(features)
    return torch.ops.atrousops.permutohedral_apply(scores, *_operands(lattice), False)


def _reference_filter(features: Tensor, scores: Tensor) -> Tensor:
    return _reference_kernel(features)(scores)


def _field(features: Tensor, scores: Tensor) -> Tensor:
    lattice = torch.ops.atrousops.permutohedral_lattice(features)
    return torch.ops.atrousops.mean_field(scores, _operands(lattice), [_potts(scores)], _ITERATIONS)


def _reference_field(features: Tensor, scores: Tensor) -> Tensor:
    return reference.mean_field(scores, [_reference_kernel(features)], [_potts(scores)], _ITERATIONS)


def _reference_kernel(features: Tensor) -> Callable[[Tensor], Tensor]:
    operands: Any = [*_operands(reference.permutohedral_lattice(features)), False]
    return lambda values: reference.permutohedral_apply(values, *operands)
