"""The calls by which a family of kernels proves itself: small and odd ones to compare, and larger ones to time too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from atrousops.common.testing import Outputs
from atrousops.dispatch.verdicts import TimedCall

# Makes a tensor of values around zero from its size.
Make = Callable[[tuple[int, ...]], Tensor]


class Case(NamedTuple):
    """A call of ours and the same of PyTorch's.

    what: names it in verdicts.
    make: its tensors, the floating ones by the function that it is given.
    ours, theirs: the call, on those; PyTorch's in any floating dtype, on any device.
    offset: elements by which tensors start behind an address that everything is aligned to.
    tf32: fp32 is multiplied as TF32.
    call: of a convolution, as the planner is asked about it.
    """

    what: str
    make: Callable[[Make], Sequence[Tensor]]
    ours: Callable[..., Outputs]
    theirs: Callable[..., Outputs]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    offset: int = 0
    tf32: bool = False
    call: TimedCall | None = None


class Family(NamedTuple):
    """Kernels that are judged together.

    cases: small calls; larger: of many blocks, for devices that are fast enough; timed: beside PyTorch, if it has such
    an operator.
    """

    cases: tuple[Case, ...]
    larger: tuple[Case, ...] = ()
    timed: tuple[Case, ...] = ()


def name_of(dtype: torch.dtype, tf32: bool = False) -> str:
    """As in a verdict: "tf32", "bfloat16"."""
    return "tf32" if tf32 else str(dtype).removeprefix("torch.")
