"""Keeps subnormal numbers out of PyTorch's own kernels, whose worker threads pay a hundred cycles for each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from atrousops import _library
from atrousops.ops.flush_subnormals import flush_subnormals

# One block of elements in so many is looked at.
PART = 64

# id of a weight -> (where its data lie, version, whether it holds subnormals). Wrong entries would only cost time, and
# a weak reference would forbid torch.utils.swap_tensors. An inference tensor has no version, and its entry none.
_known: dict[int, tuple[int, int | None, bool]] = {}
_MOST = 4096


def clean_weight(weight: Tensor) -> Tensor:
    """The weight itself, or, if it holds subnormal numbers, a differentiable copy without; scanned once per version."""
    # Forward-mode derivatives stay PyTorch's own, at PyTorch's own speed.
    if not _scannable(weight):
        return weight
    version = None if weight.is_inference() else weight._version
    entry = _known.get(id(weight))
    if entry is None or entry[:2] != (weight.data_ptr(), version):
        if len(_known) >= _MOST:
            _known.clear()
        found = torch.ops.atrousops.has_subnormals(weight.detach(), 1)
        entry = _known[id(weight)] = (weight.data_ptr(), version, found)
    return flush_subnormals(weight) if entry[2] else weight


def clean_input(input: Tensor) -> Tensor:
    """The same for a large input, judged by a part of it: what is too rare to be seen there costs nothing."""
    if _scannable(input) and torch.ops.atrousops.has_subnormals(input.detach(), PART):
        return flush_subnormals(input)
    return input


def _scannable(tensor: Tensor) -> bool:
    if not (_library.has_operators and tensor.is_cpu and tensor.is_floating_point()):
        return False
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and forward_ad._current_level < 0
    return plain and not torch._C._are_functorch_transforms_active()
