"""What tests of operators on an emulated GPU share: the comparison with the CPU, and which kernels a call launches."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable

import torch
from oracle import assert_close

import atrousops as ao

# An operator's outputs and gradients at a dtype, on the default device.
Results = Callable[[torch.dtype], list[torch.Tensor]]


def assert_as_the_cpu(results: Results, dtype: torch.dtype) -> None:
    """Within twice the error that the CPU's kernels make at the dtype; what is not floating is equal.

    Nothing more exact than fp64 is at hand. There it is twice the error that the CPU's kernels make in fp32, which is
    a smaller one by the ratio of the roundings, or that readable PyTorch in fp64 is away, and a rounding of the largest
    value.
    """
    with torch.device("cuda"), ao.backend("cuda"), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        ours = [t.cpu() for t in results(dtype)]
    with ao.backend("cpu"):
        exact = results(torch.float64)
        rounded = results(torch.float32 if dtype == torch.float64 else dtype)
    with ao.backend("reference"):
        again = results(torch.float64) if dtype == torch.float64 else rounded
    ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    for a, right, b, other in zip(ours, exact, rounded, again, strict=True):
        if not a.is_floating_point():
            assert torch.equal(a, right)
        elif dtype == torch.float64 and a.numel():
            error = max((b.double() - right).abs().max() * ratio, (other - right).abs().max())
            bound = 2 * error + torch.finfo(dtype).eps * right.abs().max()
            torch.testing.assert_close(a, right, rtol=0, atol=float(bound))
        else:
            assert_close(a, right, b)


@functools.cache
def readable(names: tuple[str, ...]) -> dict[str, str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines(), strict=True))


def launched(call: Callable[[], object]) -> set[str]:
    """The kernels that a call launches."""
    # An emulated process alone has them on its path.
    import emulation
    import kernels

    library = emulation.start()
    before = kernels.launches(library)
    call()
    after = kernels.launches(library)
    names = readable(tuple(after))
    return {names[name] for name, count in after.items() if count > before[name]}
