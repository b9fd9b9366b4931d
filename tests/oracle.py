"""The tolerance rule: twice the error PyTorch itself makes at that dtype against fp64."""

from collections.abc import Callable
from typing import TypeVar

import torch

from atrousops.testing import disagreement

T = TypeVar("T")


def assert_close(ours: torch.Tensor, exact: torch.Tensor, theirs: torch.Tensor) -> None:
    """|ours - exact| <= 2 max|theirs - exact| + one rounding of the largest exact value.

    Args:
        ours: our result at the dtype under test.
        exact: the oracle's result in fp64.
        theirs: PyTorch's result at the dtype under test.
    """
    wrong = disagreement(ours, exact, theirs)
    assert wrong is None, wrong


def both_ways(compute: Callable[[], T]) -> list[T]:
    """What PyTorch computes in fp32: by oneDNN, and by its own kernels.

    oneDNN's error depends on the CPU: on a Zen 4 with AVX-512 it was a third of that of a plain sum.
    """
    found = [compute()]
    torch._C._set_mkldnn_enabled(False)
    try:
        return [*found, compute()]
    finally:
        torch._C._set_mkldnn_enabled(True)


def worst(exact: torch.Tensor, *theirs: torch.Tensor) -> torch.Tensor:
    """Of several results of PyTorch's the one that is furthest from the exact one."""
    error = lambda t: float((t.detach().double() - exact).abs().nan_to_num().max())  # noqa: E731
    return max(theirs, key=error) if exact.numel() else theirs[0]


def tf32(t: torch.Tensor) -> torch.Tensor:
    """Of fp32, rounded to 10 bits of fraction: what a TF32 product sees."""
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) if t.dtype == torch.float32 else t
