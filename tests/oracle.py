"""The tolerance rule: twice the error PyTorch itself makes at that dtype against fp64."""

import torch

from atrousops.testing import disagreement


def assert_close(ours: torch.Tensor, exact: torch.Tensor, theirs: torch.Tensor) -> None:
    """|ours - exact| <= 2 max|theirs - exact| + one rounding of the largest exact value.

    Args:
        ours: our result at the dtype under test.
        exact: the oracle's result in fp64.
        theirs: PyTorch's result at the dtype under test.
    """
    wrong = disagreement(ours, exact, theirs)
    assert wrong is None, wrong


def worst(exact: torch.Tensor, *theirs: torch.Tensor) -> torch.Tensor:
    """Of several results of PyTorch's the one that is furthest from the exact one."""
    return max(theirs, key=lambda t: float((t.double() - exact).abs().nan_to_num().max()) if t.numel() else 0.0)
