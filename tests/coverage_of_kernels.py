"""Runs the host_cuda tests and lists the CUDA kernels and instruction wrappers that none of them executed.

python tests/coverage_of_kernels.py [pytest arguments]; the exit status says whether the list is empty.
"""

from __future__ import annotations

import sys

import host_cuda
import pytest


def never_executed() -> list[host_cuda.Counted]:
    """Kernels and wrappers that are compiled in and have not run in this process."""
    return [counted for counted in host_cuda.coverage() if counted.runs == 0]


def summary() -> str:
    """One line for the end of a test run."""
    every, left = host_cuda.coverage(), never_executed()
    kinds = " and ".join(f"{sum(c.kind == kind for c in every)} {kind}s" for kind in ("kernel", "wrapper"))
    return f"host_cuda: {kinds}, {len(left)} never executed (python tests/coverage_of_kernels.py lists them)"


def main(arguments: list[str]) -> int:
    """Tests first, whatever their outcome; then the list."""
    status = pytest.main(["-q", *(arguments or ["-k", "host_cuda or cuda", "tests"])])
    left = never_executed()
    print(summary())
    for counted in left:
        print(f"  {counted.kind} {counted.name}")
    return int(status) or int(bool(left))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
