"""PyTorch's kernel against a few of ours on one convolution, checked and timed: ahead by autotune, or by first calls.

`torch.backends.cudnn.benchmark = True` means to our kernels on a GPU what it means to PyTorch's: the first call of a
shape measures, and the process keeps the faster. `autotune` makes the same measurement ahead, and keeps it on disk.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atrousops.common.testing import Clock, clock_of, differs, interleaved
from atrousops.dispatch import choice
from atrousops.dispatch.devices import is_captured, is_emulated, tf32_allowed
from atrousops.dispatch.measured import Key, Times
from atrousops.proof import convolutions

log = logging.getLogger("atrousops")
# Rounds and seconds of a first call: a user waits for them.
_ROUNDS, _BUDGET = 5, 0.1
# Kernels of ours that are timed, the fastest by prediction.
_FEW = 3
# Bytes that the clock overwrites to flush a GPU's L2 cache, at least.
_FLUSHED = 1 << 28


def runs(key: Key) -> bool:
    """Whether there is something to choose: a kernel of ours that may run, and one padding an axis, as PyTorch has."""
    a = key.arguments
    rank = len(a.stride)
    return a.padding[:rank] == a.padding[-rank:] and bool(_few(key))


def _few(key: Key) -> list[choice.Chosen]:
    return choice.proved(key.arguments, key.dtype, key.channels_last, key.state[0])[:_FEW]


def measure(key: Key, budget: float, repeats: int = 15, clock: Clock | None = None) -> Times:
    """Times PyTorch's kernel and the fastest few of ours by prediction on random tensors.

    One that gives another result than PyTorch's is left out, and a warning says so; where none is left, ours counts as
    endless. Leaves the process' random numbers alone. `clock`: in place of the device's.
    """
    device = torch.device(key.state[0])
    with torch.set_grad_enabled(key.needs_grad), torch.autocast(device.type, enabled=False):
        aten, ours = contenders(key, device)
        right = aten()
        for kernel, run in list(ours.items()):
            problem = _disagreement(run(), right)
            if problem:
                log.warning("%s: our kernel %s is left out, for it gives %s", key.arguments, kernel, problem)
                del ours[kernel]
        functions = (aten, *ours.values())
        timed = interleaved(*functions, repeats=repeats, budget=budget, clock=clock or clock_of(device), warm_up=False)
    # The lower quartiles: other work on the machine makes calls slower, never faster.
    of_aten, *of_ours = [timing.lower for timing in timed]
    return Times(of_aten, min(of_ours, default=math.inf), tuple(zip(ours, of_ours)))


def _disagreement(ours: Any, aten: Any) -> str | None:
    pairs = [(ours, aten)] if isinstance(ours, Tensor) else zip(ours, aten, strict=True)
    return next((problem for a, b in pairs if (problem := differs(a.detach(), b.detach().double()))), None)


def first_call(key: Key) -> Times | None:
    """The measurement of a first call, or None where there is nothing to choose, and on an emulated GPU.

    Raises:
        Later: inside a CUDA graph's capture, a trace or a transform of functions, and where memory is short.
    """
    device = torch.device(key.state[0])
    watched = (
        torch._C._len_torch_dispatch_stack() or torch._C._is_tracing() or torch._C._are_functorch_transforms_active()
    )
    if is_emulated(device) or not runs(key):
        return None
    if watched or is_captured(device) or not _has_room(key, device):
        raise choice.Later
    return measure(key, _BUDGET, _ROUNDS)


def _has_room(key: Key, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    a = key.arguments
    # Input, weight, gradient from above and results, twice; none of them is larger than the largest here.
    x, w, dy = convolutions.operands(a, lambda size: torch.empty(size, dtype=key.dtype, device="meta"))
    needed = _FLUSHED + 4 * sum(t.numel() * key.dtype.itemsize for t in (x, w, dy))
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return needed < torch.cuda.mem_get_info(device)[0] + unused


def contenders(key: Key, device: torch.device) -> tuple[Callable[[], Any], dict[str, Callable[[], Any]]]:
    """PyTorch's operator, and ours on the fastest few of our kernels by prediction, on the same random tensors."""
    a = key.arguments
    tf32 = device.type == "cuda" and tf32_allowed()
    random = torch.Generator(device).manual_seed(0)

    def tensor(size: tuple[int, ...]) -> Tensor:
        t = torch.randn(size, generator=random, device=device).to(key.dtype)
        if key.channels_last:
            t = t.movedim(1, -1).contiguous().movedim(-1, 1)
        return t.requires_grad_(key.needs_grad)

    x, w, dy = convolutions.operands(a, tensor)
    aten = partial(convolutions.aten, a, x, w, dy)
    ours: dict[str, Callable[[], Any]] = {
        c.kernel: partial(convolutions.ours, a, x, w, dy, tf32=tf32, first=c.first or 0) for c in _few(key)
    }
    if not key.needs_grad:
        return aten, ours
    dy = torch.ones_like(aten().detach())
    return partial(_gradients, aten, (x, w), dy), {n: partial(_gradients, run, (x, w), dy) for n, run in ours.items()}


def _gradients(forward: Callable[[], Tensor], leaves: tuple[Tensor, ...], dy: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(forward(), leaves, dy)


choice.contest = first_call
