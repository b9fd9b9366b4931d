"""Comparison of a result with an oracle, and timing of several implementations: for tests, demo and benchmarks."""

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
    """Why `ours` is wrong, or None if |ours - exact| <= times max|theirs - exact| + one rounding of the largest value.

    Integer tensors must be equal to `exact`. NaN must be at the same positions.

    Args:
        ours: our result at the dtype under test.
        exact: the oracle's result in fp64.
        theirs: PyTorch's result at the dtype under test.
        times: multiple of PyTorch's error that is allowed.
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
    # The difference of equal infinities, and of NaN, is NaN; they agree. In place, because outputs can exceed 100 MB.
    difference = result.double() if result.dtype != torch.float64 else result.clone()
    return difference.sub_(exact).abs_().nan_to_num_(nan=0.0, posinf=torch.inf).max()


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median and the quartiles; `seconds` has the time of every round, if kept."""

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
        """The ratio to `other` in each round: an event that slows a whole round favours neither."""
        return Timing.of([ours / theirs for ours, theirs in zip(self.seconds, other.seconds, strict=True)])

    @property
    def error(self) -> float:
        """The uncertainty of the median, at a level of 5 %: 1.57 (upper - lower) / sqrt(repeats).

        Source: McGill, Tukey & Larsen, Variations of box plots (1978).
        """
        return 1.57 * (self.upper - self.lower) / self.repeats**0.5


# Calls shorter than this are timed directly after another call of the same function: otherwise the caches and the
# allocator, as left by another contender, decided up to a third of the time.
SHORT = 0.05


def host_seconds(function: Callable[[], object]) -> float:
    """Seconds of a call that is synchronous; if that is less than SHORT, of the second of two calls."""
    seconds = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        function()
        seconds = time.perf_counter() - start
        if seconds >= SHORT:
            break
    return seconds


class Queue(Protocol):
    """The GPU functions that the clock needs: torch.cuda's stream and events, or a test's substitute."""

    def flush(self) -> None:
        """Issues work that takes some time and evicts our data from the caches."""

    def mark(self) -> Any:
        """Records an event."""

    def reached(self, mark: Any) -> bool:
        """Whether the GPU has reached an event."""

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two events; waits for the second."""


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


# The most seconds of work before a call: a call that itself waits for the GPU is never issued in time.
MOST_BUSY = 0.1


def flushes_for(issue: float, flush: float) -> int:
    """The number of flushes that keep a GPU busy for twice the time of issuing a call, and for MOST_BUSY at most.

    issue, flush: seconds that the host needs for the call, and the GPU for one flush.
    """
    return max(1, math.ceil(min(2 * issue, MOST_BUSY) / flush))


class DeviceClock:
    """Seconds between two GPU events around a call, after flushing the L2 cache, without the host's time.

    Flushing must take longer than the host needs to issue the call. Otherwise the GPU would wait for the host between
    the call's kernels; in the backward pass autograd's threads take longer than most kernels. If the GPU has already
    reached the first event when everything is issued, the call is repeated after more flushes.
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
            # The call itself waits for the GPU: the second event cannot be issued before it ends.
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
    """The clock for a device: GPU events, or the host's clock, waiting for the GPU at the end."""
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
    """Times a, b, c, c, b, a, a, b, ... after one unmeasured call of each, so that slow periods affect all.

    Every other round is in reverse order, so that no function always runs after the same other one.

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
    """Several implementations of one computation: which are wrong, which cannot run, and the timings of the others.

    If a result of ours is wrong, there are no timings.
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
    """Compares every result with the oracle; if all of ours are right, times all that are right, interleaved.

    Each entry is a function that does the preparation and returns the function to time, so that the forward pass before
    a backward pass is not timed.

    Args:
        ours: checked by `disagreement`.
        theirs: checked by `differs`, with a bound that only shows that they compute the same thing.
        exact: the oracle's result in fp64.
        yardstick: PyTorch's result at the dtype under test, whose error sets the bound for ours. By default the first
            of theirs, or the exact result rounded to that dtype if the first cannot run.
        rounded: those of theirs that compute at the dtype under test and may return a wider one, with the multiple of
            PyTorch's error that is allowed; their results are rounded to the dtype and go through `disagreement`.
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
    """The functions to time, ours first; the others are recorded in `result`."""
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
    """Why two results cannot be of the same computation, or None if |theirs - exact| <= 4 sqrt(eps) max |exact|."""
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
