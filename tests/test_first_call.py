"""torch.backends.cudnn.benchmark: the first call of a shape measures PyTorch's kernel and ours, and keeps the faster.

On the CPU, pretending that the flag is for it, by a clock that says what it is told to.
"""

import logging

import pytest
import torch

import atrousops as ao
import atrousops.functional as A
from atrousops.dispatch import choice, libraries, measured
from atrousops.proof import contest, convolutions

pytestmark = pytest.mark.skipif(not libraries.has_operators, reason="the CPU library is not built")


class Clock:
    """PyTorch's kernel takes a second, ours as many as it is told; `calls` counts both."""

    def __init__(self, ours: float) -> None:
        self.ours, self.calls = ours, 0

    def __call__(self, function) -> float:
        self.calls += 1
        function()
        return self.ours if function.func is convolutions.ours else 1.0


@pytest.fixture(autouse=True)
def folder(own_plans):
    return own_plans


def benchmarked(monkeypatch, ours: float) -> Clock:
    clock = Clock(ours)
    monkeypatch.setattr(choice, "benchmarks", lambda device: True)
    monkeypatch.setattr(contest, "clock_of", lambda device: clock)
    return clock


def call(size: int = 24) -> torch.Tensor:
    torch.manual_seed(0)
    return A.conv2d(torch.randn(1, 8, size, size), torch.randn(16, 8, 3, 3), padding=4, dilation=4)


def kernel(size: int = 24) -> str:
    """What runs the call, by its plan."""
    (row,) = ao.explain(call, size).rows
    return row.backend


@pytest.mark.parametrize(("ours", "backend"), [(0.5, "cpu"), (2.0, "aten")])
def test_the_faster_is_kept(monkeypatch, folder, ours, backend):
    clock = benchmarked(monkeypatch, ours)
    first = call()
    assert clock.calls >= 2
    count = clock.calls
    for _ in range(3):
        assert torch.equal(call(), first)
    assert kernel() == backend
    assert clock.calls == count
    # Another shape is another measurement.
    call(32)
    assert clock.calls > count
    # For this process: `autotune` writes.
    assert not list(folder.iterdir())


def test_autotune_has_measured_it_already(monkeypatch):
    clock = benchmarked(monkeypatch, 0.5)
    with choice.watched() as seen:
        monkeypatch.setattr(choice, "contest", None)
        call()
    measured.add({seen[0]: measured.Times(aten=1.0, ours=3.0)})
    choice.forget()
    monkeypatch.setattr(choice, "contest", contest.first_call)
    call()
    assert clock.calls == 0
    assert kernel() == "aten"


@pytest.mark.parametrize("what", ["flag", "capture", "trace"])
def test_nothing_is_measured(monkeypatch, what):
    """Without the flag; inside the capture of a CUDA graph; in a trace."""
    clock = benchmarked(monkeypatch, 0.5)
    if what == "flag":
        monkeypatch.setattr(choice, "benchmarks", lambda device: False)
    if what == "capture":
        monkeypatch.setattr(contest, "is_captured", lambda device: True)
    if what == "trace":
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            call()
    else:
        call()
    assert clock.calls == 0


def test_wrong_results_lose(monkeypatch, caplog):
    clock = benchmarked(monkeypatch, 0.001)
    right = convolutions.ours
    wrong = lambda *args, **kwargs: right(*args, **kwargs) + 1  # noqa: E731
    monkeypatch.setattr(contest.convolutions, "ours", wrong)
    with caplog.at_level(logging.WARNING, "atrousops"):
        call()
    assert "PyTorch's kernel is kept, for ours gives another result" in caplog.text
    assert clock.calls >= 1
    assert kernel() == "aten"


def test_the_flag_is_of_gpus():
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        assert choice.benchmarks("cuda:0")
        assert not choice.benchmarks("cpu")
    with torch.backends.cudnn.flags(enabled=True, benchmark=False):
        assert not choice.benchmarks("cuda:0")


def test_a_training_call_measures_its_gradients(monkeypatch):
    """Forward pass and both gradients together, as a plan weighs them; this clock knows no difference."""
    benchmarked(monkeypatch, 1.0)
    x, w = torch.randn(1, 8, 24, 24, requires_grad=True), torch.randn(16, 8, 3, 3, requires_grad=True)
    monkeypatch.setattr(contest, "clock_of", lambda device: lambda function: (function(), 1.0)[1])
    A.conv2d(x, w, padding=4, dilation=4)
    assert ("forward", True) in {(key.arguments.kind, key.needs_grad) for key in choice._contested}


def test_random_numbers_go_on_as_without(monkeypatch):
    benchmarked(monkeypatch, 0.5)
    call()
    (key,) = choice._contested
    state = torch.get_rng_state()
    assert contest.first_call(key) is not None
    assert torch.equal(torch.get_rng_state(), state)
