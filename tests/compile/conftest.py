"""These tests read the built CUDA library: `make cuda` builds it where nvcc is, without a GPU."""

import pytest
import resources


@pytest.fixture(scope="session", autouse=True)
def library_is_built():
    why = resources.problem()
    if why:
        pytest.skip(why)
