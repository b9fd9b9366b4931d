"""NaN-poisoned outputs for every test, and the shared data, if it is there."""

import os
from pathlib import Path

import pytest
import torch

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
