"""The tables of Triton's convolutions: a CUDA graph reads them at each replay, and cannot hold the copy to the GPU."""

import gc
import weakref

import pytest
import torch

from atrousops.common.checks import ArgumentError
from atrousops.dispatch.planner import CallArguments, call_problem
from atrousops.triton import _tables

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    """Tables of this test only."""
    for name in ("_regions", "_weight_taps"):
        monkeypatch.setattr(_tables, name, _tables._Kept(getattr(_tables, name)._build))
    monkeypatch.setattr(_tables, "_MOST", 3)


def tables(size: int) -> list[torch.Tensor]:
    """Of a convolution of a map so wide, and of its weight gradient."""
    around = ((1, 4, 8, size), (4, 4, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    forward, backward = (call_problem(CallArguments(kind, *around)) for kind in ("forward", "weight_grad"))
    return [*_tables.regions(forward, 64, CPU)[1:], _tables.weight_taps(backward, CPU)]


def captured(monkeypatch, size: int) -> list[torch.Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(_tables, "is_captured", lambda device: True)
        return tables(size)


def test_tables_of_a_graph_stay(monkeypatch):
    tables(8)
    addresses = [t.data_ptr() for t in captured(monkeypatch, 8)]
    for size in range(9, 19):
        tables(size)
    assert [t.data_ptr() for t in tables(8)] == addresses


def test_tables_of_plain_calls_go():
    gone = weakref.ref(tables(8)[0])
    again = tables(8)
    assert again[0] is gone()
    del again
    for size in range(9, 13):
        tables(size)
    gc.collect()
    assert gone() is None


def test_the_tables_used_last_are_kept():
    first = tables(8)[0].data_ptr()
    held = [tables(9), tables(10)]
    tables(8)
    held.append(tables(11))  # in place of that of 9
    assert tables(8)[0].data_ptr() == first
    assert tables(9)[0] is not held[0][0]


def test_a_capture_needs_its_tables_before(monkeypatch):
    with pytest.raises(ArgumentError, match="must come before a CUDA graph is captured; got one inside"):
        captured(monkeypatch, 8)
    tables(8)
    assert captured(monkeypatch, 8)
