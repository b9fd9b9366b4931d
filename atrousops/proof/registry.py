"""All families of cases that a selfcheck runs."""

from __future__ import annotations

from atrousops.proof import conv_cases, other_cases
from atrousops.proof.cases import Family


def families(backend: str, device: str) -> dict[str, Family]:
    """Every family that a backend has on a device, by the name that `verdicts` know it by.

    Args:
        backend: "cuda", "triton" or "cpu".
        device: as str(torch.device): which kernel runs a convolution is what the planner says of it.
    """
    found = conv_cases.families(backend, device)
    return found | other_cases.families(backend)
