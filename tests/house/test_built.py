"""Tests of a part that is missing are left out; where this checkout was built, no part may be."""

import os
from pathlib import Path

import host_cuda
import pytest

from atrousops.dispatch import libraries

BUILT = [*(Path(__file__).resolve().parents[2] / "build").glob("cp*")]


def test_what_was_built_loads():
    if not BUILT or "ATROUSOPS_LIBRARY" in os.environ:
        pytest.skip("the libraries are another checkout's")
    problems = {part.name: part.problem for part in libraries.parts if part.name in ("cpu", "_C")}
    problems["host_cuda"] = host_cuda.problem()
    assert not any(problems.values()), problems
