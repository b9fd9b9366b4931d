"""NaN-poisoned outputs for every test, the backends of operator tests, and the shared data if it is there."""

import os
from collections.abc import Iterator
from pathlib import Path

import host_cuda
import pytest
import torch

import atrousops as ao
from atrousops import _library

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def poison():
    """Uninitialised memory is NaN (or the largest integer), so that an element no kernel wrote shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "host_cuda", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request) -> Iterator[str]:
    """Whose kernels the test runs; forced, so a test that wants another says so.

    "host_cuda" is the CUDA kernels on CPU tensors; keep shapes small. "cuda" makes tensors on the GPU by default.
    """
    name = request.param
    if name == "host_cuda":
        if host_cuda.problem():
            pytest.skip(host_cuda.problem())
        with host_cuda.host_cuda(), host_cuda.order(host_cuda.default_seed()):
            yield name
        return
    part = _library.cuda if name == "cuda" else _library.cpu
    if part.problem:
        pytest.skip(f"no {name} library: {part.problem}")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    with torch.device(name), ao.backend(name):
        yield name


def data_folder() -> Path | None:
    """The folder with the real material: $ATROUSOPS_DATA, or ../shared/data beside the checkout."""
    for candidate in (os.environ.get("ATROUSOPS_DATA"), Path(__file__).resolve().parents[2] / "shared" / "data"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None


@pytest.fixture
def real_data() -> Path:
    folder = data_folder()
    if folder is None:
        pytest.skip("no real data: set ATROUSOPS_DATA")
    return folder
