"""One thread, few calls, and the algorithms that users get."""

from collections.abc import Iterator

import pytest
import torch

from atrousops.bench.suites import overhead


@pytest.fixture(autouse=True)
def as_in_use(poison, monkeypatch) -> Iterator[None]:
    # PyTorch's max_unpool refuses under the deterministic algorithms that tests ask for elsewhere.
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(overhead, "CALLS", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
