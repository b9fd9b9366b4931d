"""One thread, few calls, and the algorithms that users get."""

import pytest
import torch

from atrousops.bench.suites import overhead


@pytest.fixture(autouse=True)
def as_in_use(poison, thread_count, monkeypatch) -> None:
    # PyTorch's max_unpool refuses under the deterministic algorithms that tests ask for elsewhere.
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(overhead, "CALLS", 2)
    torch.set_num_threads(1)
