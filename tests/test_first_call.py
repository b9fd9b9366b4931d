"""torch.backends.cudnn.benchmark: the first call of a shape measures PyTorch's kernel and ours, and keeps the faster.

On the CPU, pretending that the flag is for it, by a clock that says what it is told to.
"""

import logging
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import atrousops as ao
import atrousops.functional as A
from atrousops.dispatch import choice, devices, libraries, measured, planner
from atrousops.proof import contest, convolutions

pytestmark = [
    pytest.mark.skipif(not libraries.has_operators, reason="the CPU library is not built"),
    pytest.mark.usefixtures("own_plans"),
]


class Clock:
    """PyTorch's kernel takes a second, ours as many as it is told, by `first`; `calls` counts all."""

    def __init__(self, ours: float, others: dict[int, float] | None = None) -> None:
        self.ours, self.calls, self.seen = {0: ours} | (others or {}), 0, set()

    def __call__(self, function) -> float:
        self.calls += 1
        function()
        if function.func is not convolutions.ours:
            return 1.0
        first = function.keywords["first"]
        self.seen.add(first)
        return self.ours[first]


def benchmarked(monkeypatch, ours: float, others: dict[int, float] | None = None) -> Clock:
    clock = Clock(ours, others)
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
def test_the_faster_is_kept(monkeypatch, own_plans, ours, backend):
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
    assert not list(own_plans.iterdir())


def several(monkeypatch) -> None:
    """As on a GPU of our CUDA library: the planned kernel, and what can take its place, with predicted seconds."""
    monkeypatch.setattr(devices, "gpu_kind", lambda: "cuda")
    predicted = {"regions": 2.0, "grouped": 5.0, "mma": 3.0, "simt": 4.0}
    known = [planner.Candidate(kernel, seconds, "") for kernel, seconds in predicted.items()]
    monkeypatch.setattr(choice, "_runnable", lambda *call: known)


def test_the_fastest_few_of_ours_are_measured(monkeypatch):
    """Three by prediction; the fastest by the clock is kept, and the operator is told which."""
    several(monkeypatch)
    clock = benchmarked(monkeypatch, 0.9, {4: 0.7, 5: 0.5})
    told = []
    operator = torch.ops.atrousops.conv
    monkeypatch.setattr(torch.ops.atrousops, "conv", lambda *args: told.append(args[-1]) or operator(*args))
    call()
    assert clock.seen == {0, 4, 5}
    assert set(told[:-1]) == {0, 4, 5}
    assert told[-1] == 5
    (key,) = choice._contested
    assert measured.lookup(key) == (1.0, 0.5, (("regions", 0.9), ("mma", 0.7), ("simt", 0.5)))
    assert choice.chosen(*key[:4]) == ("simt", 5)
    assert choice.plan_call(*key[:4]).reason.startswith("simt: simt was measured at 0.50 of the time of aten")


def test_of_several_those_that_are_wrong_are_left_out(monkeypatch, caplog):
    several(monkeypatch)
    benchmarked(monkeypatch, 0.9, {4: 0.7, 5: 0.5})
    right = convolutions.ours
    wrong = lambda *args, first, **kwargs: right(*args, first=first, **kwargs) + (first == 5)  # noqa: E731
    monkeypatch.setattr(contest.convolutions, "ours", wrong)
    with caplog.at_level(logging.WARNING, "atrousops"):
        call()
    assert "our kernel simt is left out, for it gives another result" in caplog.text
    (key,) = choice._contested
    assert choice.chosen(*key[:4]) == ("mma", 4)


def test_autotune_keeps_which_of_ours_was_the_fastest(monkeypatch, own_plans):
    several(monkeypatch)
    clock = Clock(0.9, {4: 0.7, 5: 0.5})
    monkeypatch.setattr(contest, "clock_of", lambda device: clock)
    tuning = ao.autotune(call, budget=0)
    ((key, times),) = tuning.times.items()
    assert times.kernel == "simt"
    assert "  simt" in str(tuning)
    # As another process reads it.
    measured.forget()
    choice.forget()
    assert measured.lookup(key) == times
    assert choice.chosen(*key[:4]) == ("simt", 5)


def test_a_call_that_came_during_a_capture_is_measured_later(monkeypatch):
    """What was answered meanwhile is not kept for good."""
    clock = benchmarked(monkeypatch, 0.5)
    monkeypatch.setattr(contest, "is_captured", lambda device: True)
    for _ in range(2):
        call()
    assert clock.calls == 0
    monkeypatch.setattr(contest, "is_captured", lambda device: False)
    call()
    count = clock.calls
    assert count >= 2
    call()
    assert clock.calls == count


def test_where_there_is_nothing_to_choose_the_answer_is_kept(monkeypatch):
    asked = []
    monkeypatch.setattr(choice, "benchmarks", lambda device: True)
    monkeypatch.setattr(choice, "contest", lambda key: asked.append(key))
    for _ in range(3):
        call()
    assert len(asked) == 1


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


def test_nothing_is_measured_in_a_trace_or_without_the_flag(monkeypatch):
    clock = benchmarked(monkeypatch, 0.5)
    with FakeTensorMode():
        call()
    assert clock.calls == 0
    monkeypatch.setattr(choice, "benchmarks", lambda device: False)
    call()
    assert clock.calls == 0


def test_wrong_results_lose(monkeypatch, caplog):
    clock = benchmarked(monkeypatch, 0.001)
    right = convolutions.ours
    wrong = lambda *args, **kwargs: right(*args, **kwargs) + 1  # noqa: E731
    monkeypatch.setattr(contest.convolutions, "ours", wrong)
    with caplog.at_level(logging.WARNING, "atrousops"):
        call()
    assert "our kernel regions is left out, for it gives another result" in caplog.text
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


WALK = """
import sys, torch, atrousops.functional as A
x, w, entered = torch.zeros(1, {c}, 33, 33), torch.zeros(256, {c}, 3, 3), set()
def enter(frame, event, _):
    name = frame.f_code.co_filename
    if event == "call" and "/atrousops/" in name: entered.add(name.rpartition("/atrousops/")[2])
with torch.inference_mode():
    sys.setprofile(enter)
    A.conv2d(x, w, None, 1, 18, 18)
    sys.setprofile(None)
print(*sorted(entered))
"""


@pytest.mark.parametrize("channels", [16, 2048], ids=["PyTorch's kernel", "ours"])
def test_the_walk_of_a_first_call_enters_six_files(channels):
    """Of the package, in a new process: what a reader has to open who wants to know why a kernel runs."""
    script = [sys.executable, "-c", WALK.format(c=channels)]
    entered = subprocess.run(script, capture_output=True, text=True, check=True).stdout.split()
    assert "ops/conv.py" in entered
    assert len(entered) <= 6, entered
