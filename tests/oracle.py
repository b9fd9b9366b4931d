"""The tolerance rule: twice the error PyTorch itself makes at that dtype against fp64."""

import torch


def assert_close(ours: torch.Tensor, exact: torch.Tensor, theirs: torch.Tensor) -> None:
    """|ours - exact| <= 2 max|theirs - exact| + one rounding of the largest exact value.

    Args:
        ours: our result at the dtype under test.
        exact: the oracle's result in fp64.
        theirs: PyTorch's result at the dtype under test.
    """
    assert ours.shape == exact.shape, f"shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    assert ours.dtype == theirs.dtype, f"dtype {ours.dtype}, expected {theirs.dtype}"
    if exact.numel() == 0:
        return
    assert torch.equal(ours.isnan(), exact.isnan()), "NaN in different places"
    known = ~exact.isnan()
    error = (ours.double() - exact)[known].abs()
    if error.numel() == 0:
        return
    theirs_error = (theirs.double() - exact)[known].abs().max()
    bound = 2 * theirs_error + torch.finfo(ours.dtype).eps * exact[known].abs().max()
    worst = error.max()
    assert worst <= bound, f"error {worst:.3e}, bound {bound:.3e}, PyTorch's own error {theirs_error:.3e}"
