"""These tests read the built CUDA library: `make cuda` builds it where nvcc is, without a GPU."""

import pytest
import resources


@pytest.fixture(scope="module", autouse=True)
def library_is_built(request):
    """For all but those that say they compile for themselves."""
    why = resources.problem() if getattr(request.module, "READS_LIBRARY", True) else None
    if why:
        pytest.skip(why)
