"""How a result is held to an oracle, and how several ways to compute it are timed: for tests, demo and benchmarks."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

Outputs = Tensor | Sequence[Tensor]
Run = Callable[[], Outputs]
Ready = Callable[[], Run]
Clock = Callable[[Callable[[], object]], float]


def disagreement(ours: Tensor, exact: Tensor, theirs: Tensor, times: float = 2) -> str | None:
    """What is wrong with `ours`, or None: |ours - exact| <= 2 max|theirs - exact| + one rounding of the largest value.

    Integer tensors must be equal to `exact`. NaN must stand in the same places.

    Args:
        ours: our result at the dtype under test.
        exact: the oracle's result in fp64.
        theirs: PyTorch's result at the dtype under test.
        times: another number than 2.
    """
    if ours.shape != exact.shape:
        return f"shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    if ours.dtype != theirs.dtype:
        return f"dtype {ours.dtype}, expected {theirs.dtype}"
    if not ours.is_floating_point():
        wrong = int((ours != exact).sum())
        return f"{wrong} of {ours.numel()} integers differ" if wrong else None
    if not torch.equal(ours.isnan(), exact.isnan()):
        return "NaN in different places"
    if exact.numel() == 0:
        return None
    error, theirs_error = _largest_error(ours, exact), _largest_error(theirs, exact)
    largest = exact.abs().nan_to_num_(nan=0.0, posinf=0.0).max()
    bound = times * theirs_error + torch.finfo(ours.dtype).eps * largest
    if bool(error <= bound):
        return None
    return f"error {error:.3e}, bound {bound:.3e}, PyTorch's own error {theirs_error:.3e}"


def _largest_error(result: Tensor, exact: Tensor) -> Tensor:
    # Equal infinities, and NaN, differ by NaN; they agree. In place: outputs of 100 MB and more are compared.
    difference = result.double() if result.dtype != torch.float64 else result.clone()
    return difference.sub_(exact).abs_().nan_to_num_(nan=0.0, posinf=torch.inf).max()


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median, and the quartiles around it; `seconds` has every round's where they are kept."""

    median: float
    lower: float
    upper: float
    repeats: int
    seconds: tuple[float, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """The median and quartiles of one or more durations."""
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0], 1, tuple(seconds))
        lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, lower, upper, len(seconds), tuple(seconds))

    def over(self, other: Timing) -> Timing:
        """Each round's seconds over those of `other` in that round: what slows a whole round is in neither's favour."""
        return Timing.of([ours / theirs for ours, theirs in zip(self.seconds, other.seconds, strict=True)])

    @property
    def error(self) -> float:
        """By how much the median may be off, at a level of 5 %: 1.57 (upper - lower) / sqrt(repeats).

        Source: McGill, Tukey & Larsen, Variations of box plots (1978).
        """
        return 1.57 * (self.upper - self.lower) / self.repeats**0.5


# Calls shorter than this are timed behind another one of their own: what another contender left in the caches and in
# the allocator decided up to a third of them.
SHORT = 0.05


def host_seconds(function: Callable[[], object]) -> float:
    """Seconds of a call that finishes its work before it returns; where that is SHORT, of the second in a row."""
    seconds = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        function()
        seconds = time.perf_counter() - start
        if seconds >= SHORT:
            break
    return seconds


class Queue(Protocol):
    """What a clock of a GPU's calls needs of that GPU: torch.cuda's stream and events, or a test's."""

    def flush(self) -> None:
        """Issues work that takes a while and leaves nothing of ours in the caches."""

    def mark(self) -> Any:
        """Issues an event."""

    def reached(self, mark: Any) -> bool:
        """Whether the GPU has come to an event."""

    def seconds(self, start: Any, end: Any) -> float:
        """Between two events; waits for the second."""


class _CudaQueue:
    def __init__(self, device: torch.device) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._flushed = torch.empty(max(4 * cache, 1 << 28), dtype=torch.int8, device=device)

    def flush(self) -> None:
        self._flushed.zero_()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def reached(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


# Of work in front of a call at most: a call that itself waits for the GPU is never issued in time.
MOST_BUSY = 0.1


def flushes_for(issue: float, flush: float) -> int:
    """How many flushes keep a GPU busy for twice the seconds that issuing a call takes, and for MOST_BUSY at most.

    issue, flush: seconds of the host for the call, and of the GPU for one flush.
    """
    return max(1, math.ceil(min(2 * issue, MOST_BUSY) / flush))


class DeviceClock:
    """Seconds between two events of a GPU around a call, the L2 cache flushed before, the host's time left out.

    The GPU flushes for longer than the host takes to issue the call: else it would wait for the host between the call's
    kernels, and in the backward pass autograd's threads take longer than most kernels. Whether it did is seen by the
    first event, which must not have come when all is issued; where it had, the call is repeated behind more flushes.
    """

    def __init__(self, queue: Queue, host: Callable[[], float] = time.perf_counter) -> None:
        self._queue, self._host, self._flushes = queue, host, 1
        start = queue.mark()
        for _ in range(4):
            queue.flush()
        self._flush = max(queue.seconds(start, queue.mark()) / 4, 1e-6)

    def __call__(self, function: Callable[[], object]) -> float:
        seconds, issue, kept_busy = self._once(function)
        needed = flushes_for(issue, self._flush)
        if kept_busy or needed <= self._flushes:
            return seconds
        before, self._flushes = self._flushes, needed
        seconds, _, kept_busy = self._once(function)
        if not kept_busy:
            # The call itself waits for the GPU: nothing can be issued ahead of its end.
            self._flushes = before
        return seconds

    def _once(self, function: Callable[[], object]) -> tuple[float, float, bool]:
        for _ in range(self._flushes):
            self._queue.flush()
        begin = self._host()
        start = self._queue.mark()
        function()
        end = self._queue.mark()
        issue = self._host() - begin
        kept_busy = not self._queue.reached(start)
        return self._queue.seconds(start, end), issue, kept_busy


def clock_of(device: torch.device, of_host: bool = False) -> Clock:
    """How a call is timed: by the GPU's events, or by the host, which waits for the GPU at the end."""
    if device.type == "cpu":
        return host_seconds
    if device.type == "cuda" and not of_host:
        return DeviceClock(_CudaQueue(device))
    synchronize = torch.get_device_module(device).synchronize

    def waiting(function: Callable[[], object]) -> float:
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        return time.perf_counter() - start

    return waiting


def interleaved(
    *functions: Callable[[], object],
    repeats: int = 15,
    budget: float = float("inf"),
    clock: Clock = host_seconds,
    warm_up: bool = True,
) -> tuple[Timing, ...]:
    """Times a, b, c, c, b, a, a, b, ... after one unmeasured call of each: a slow moment of the machine meets all.

    Every other round goes backwards, so that none always runs behind the same other one.

    Args:
        functions: of no arguments.
        repeats: the number of measured rounds.
        budget: seconds after which no further round begins; at least three rounds are measured.
        clock: calls a function and returns the seconds it took.
        warm_up: False if every function has just been called.
    """
    if warm_up:
        for function in functions:
            function()
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + budget
    for done in range(repeats):
        if done >= 3 and time.perf_counter() >= end:
            break
        for function, seconds in list(zip(functions, times))[:: -1 if done % 2 else 1]:
            seconds.append(clock(function))
    return tuple(map(Timing.of, times))


@dataclass
class Comparison:
    """Several ways to compute one thing: what is wrong with some, why some cannot run, the timings of the others.

    There are no timings at all where a result of ours is wrong.
    """

    timings: dict[str, Timing] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def compare(
    ours: Mapping[str, Ready],
    theirs: Mapping[str, Ready],
    exact: Run,
    *,
    yardstick: Run | None = None,
    rounded: Mapping[str, float] | None = None,
    anchors: Mapping[str, Ready] | None = None,
    repeats: int = 15,
    budget: float = float("inf"),
    clock: Clock = host_seconds,
) -> Comparison:
    """Holds every result to the oracle; if all of ours are right, times all that are right in turn.

    Each entry is a function that gets ready and returns the function to time, so that the forward pass before a
    backward pass is not timed.

    Args:
        ours: held to `disagreement`.
        theirs: held to a bound that only shows that they compute the same thing (`differs`).
        exact: the oracle's result in fp64.
        yardstick: PyTorch's result at the dtype under test, whose error sets the bound for ours. By default the first
            of theirs; the exact result rounded to that dtype if that one cannot run.
        rounded: of theirs, those that compute at the dtype under test and may give a wider one: their results are
            rounded to it and held to `disagreement`, to this many times PyTorch's error.
        anchors: timed too, but compute something else.
        repeats, budget, clock: as in `interleaved`.
    """
    result = Comparison()
    times = dict.fromkeys(ours, 2.0) | dict(rounded or {})
    runs = _right_ones(result, ours, theirs, exact, yardstick, times)
    if not any(name in ours for name in result.wrong):
        for name, ready in (anchors or {}).items():
            runs[name] = ready()
            runs[name]()
        timings = interleaved(*runs.values(), repeats=repeats, budget=budget, clock=clock, warm_up=False)
        result.timings = dict(zip(runs, timings))
    return result


def _right_ones(
    result: Comparison,
    ours: Mapping[str, Ready],
    theirs: Mapping[str, Ready],
    exact: Run,
    yardstick: Run | None,
    times: Mapping[str, float],
) -> dict[str, Run]:
    """Those to be timed, ours first; the others go to `result`."""
    true = _tensors(exact())
    known = None if yardstick is None else _tensors(yardstick())
    runs: dict[str, Run] = {}
    for position, (name, ready) in enumerate([*theirs.items(), *ours.items()]):
        try:
            run = ready()
            outputs = _tensors(run())
        except Exception as error:
            result.failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            continue
        if position == 0 and known is None and theirs:
            known = outputs
        verdict = _verdict(outputs, true, known, times.get(name), rounded=name in theirs)
        if verdict is None:
            runs[name] = run
        else:
            result.wrong[name] = verdict
    return {name: runs[name] for name in (*ours, *theirs) if name in runs}


def _verdict(
    outputs: Sequence[Tensor],
    exact: Sequence[Tensor],
    known: Sequence[Tensor] | None,
    times: float | None,
    rounded: bool,
) -> str | None:
    if len(outputs) != len(exact):
        return f"{len(outputs)} outputs, expected {len(exact)}"
    for index, (output, true) in enumerate(zip(outputs, exact)):
        other = known[index] if known is not None else true.to(output.dtype)
        if times is None:
            wrong = differs(output, true)
        else:
            wrong = disagreement(output.to(other.dtype) if rounded else output, true, other, times)
        if wrong is not None:
            return f"output {index}: {wrong}"
    return None


def differs(theirs: Tensor, exact: Tensor) -> str | None:
    """Why two results cannot be of the same computation, or None: |theirs - exact| <= 4 sqrt(eps) max |exact|."""
    if theirs.shape != exact.shape:
        return f"shape {tuple(theirs.shape)}, expected {tuple(exact.shape)}"
    if exact.numel() == 0:
        return None
    if not theirs.is_floating_point():
        wrong = int((theirs != exact).sum())
        return f"{wrong} of {theirs.numel()} integers differ" if wrong else None
    error = (theirs.double() - exact).abs().max()
    bound = 4 * torch.finfo(theirs.dtype).eps ** 0.5 * exact.abs().max()
    return None if bool(error <= bound) else f"another result: differs by {error:.3e}, bound {bound:.3e}"


def _tensors(outputs: Outputs) -> Sequence[Tensor]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs
