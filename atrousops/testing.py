"""How a result is held to an oracle, and how two ways to compute it are timed: for tests, demo and benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Outputs = Tensor | Sequence[Tensor]


def disagreement(ours: Tensor, exact: Tensor, theirs: Tensor) -> str | None:
    """What is wrong with `ours`, or None: |ours - exact| <= 2 max|theirs - exact| + one rounding of the largest value.

    Integer tensors must be equal to `exact`. NaN must stand in the same places.

    Args:
        ours: our result at the dtype under test.
        exact: the oracle's result in fp64.
        theirs: PyTorch's result at the dtype under test.
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
    known = ~exact.isnan()
    if not bool(known.any()):
        return None
    # Equal infinities differ by NaN; they agree.
    error = torch.where(ours == exact, 0.0, ours.double() - exact)[known].abs().max()
    theirs_error = torch.where(theirs == exact, 0.0, theirs.double() - exact)[known].abs().max()
    largest = exact[known & exact.isfinite()].abs().max() if bool((known & exact.isfinite()).any()) else 0.0
    bound = 2 * theirs_error + torch.finfo(ours.dtype).eps * largest
    if bool(error <= bound):
        return None
    return f"error {error:.3e}, bound {bound:.3e}, PyTorch's own error {theirs_error:.3e}"


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median, and the quartiles around it."""

    median: float
    lower: float
    upper: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """The median and quartiles of one or more durations."""
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0], 1)
        lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, lower, upper, len(seconds))


def interleaved(
    a: Callable[[], object], b: Callable[[], object], repeats: int = 15, budget: float = float("inf")
) -> tuple[Timing, Timing]:
    """Times a, b, a, b, ... after one unmeasured call of each, so that a slow moment of the machine meets both.

    Args:
        a, b: functions of no arguments that finish their work before they return.
        repeats: the number of measured pairs.
        budget: seconds after which no further pair begins; at least three pairs are measured.
    """
    a()
    b()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + budget
    while len(times[0]) < repeats and (len(times[0]) < 3 or time.perf_counter() < end):
        for function, seconds in zip((a, b), times):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return Timing.of(times[0]), Timing.of(times[1])


@dataclass(frozen=True)
class Comparison:
    """One case, ours against theirs: either both timings, or what is wrong with our result."""

    name: str
    wrong: str | None = None
    ours: Timing | None = None
    theirs: Timing | None = None

    @property
    def ratio(self) -> float | None:
        """theirs / ours: above 1 we are faster. None if our result is wrong."""
        return self.theirs.median / self.ours.median if self.ours and self.theirs else None

    def row(self) -> str:
        """The case in one line: name, ours and theirs in milliseconds with quartiles, ratio; or WRONG and why."""
        if self.ours is None or self.theirs is None:
            return f"{self.name:<46} WRONG: {self.wrong}"
        cells = [
            f"{1e3 * t.median:8.2f} [{1e3 * t.lower:7.2f}, {1e3 * t.upper:7.2f}]" for t in (self.ours, self.theirs)
        ]
        return f"{self.name:<46} {cells[0]}  {cells[1]}  {self.ratio:6.2f}x"


HEADER = f"{'case':<46} {'ours, ms [quartiles]':>27}  {'PyTorch, ms [quartiles]':>27}  {'ratio':>7}"


def compare(
    name: str,
    ours: Callable[[], Outputs],
    theirs: Callable[[], Outputs],
    exact: Callable[[], Outputs],
    repeats: int = 15,
    budget: float = float("inf"),
) -> Comparison:
    """Holds our outputs to the oracle (`disagreement`), and times the two only if every one of them is right.

    Args:
        name: what the row is called.
        ours, theirs: the same computation at the same dtype; a tensor or several.
        exact: that computation by PyTorch in fp64.
        repeats, budget: as in `interleaved`.
    """
    for index, (mine, true, other) in enumerate(zip(*map(_tensors, (ours(), exact(), theirs())), strict=True)):
        wrong = disagreement(mine, true, other)
        if wrong is not None:
            return Comparison(name, wrong=f"output {index}: {wrong}")
    a, b = interleaved(ours, theirs, repeats, budget)
    return Comparison(name, ours=a, theirs=b)


def _tensors(outputs: Outputs) -> Sequence[Tensor]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs
