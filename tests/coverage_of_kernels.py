"""The CUDA kernels and instruction wrappers that a test run executed under host_cuda, and those that it never did.

A plain `pytest` ends with this.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import host_cuda
import pytest

# Options that leave tests out, or stop before the last.
SELECTING = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "stepwise", "maxfail", "collectonly")


# Counts of pytest-xdist's workers, of which each runs a part of the tests.
_workers: list[list[tuple[str, str, int]]] = []


def send(config: pytest.Config) -> None:
    """From a worker: its counts, if it used the library."""
    if host_cuda.was_used():
        config.workeroutput["kernels"] = [(c.kind, c.name, c.runs) for c in host_cuda.coverage()]  # type: ignore[attr-defined]


def receive(output: dict[str, Any]) -> None:
    """What a worker has sent."""
    if "kernels" in output:
        _workers.append(output["kernels"])


def was_used() -> bool:
    """Whether a test of this run asked for the library."""
    return bool(_workers) or host_cuda.was_used()


def executed() -> list[host_cuda.Counted]:
    """Every kernel and wrapper that is compiled in, with its runs in all processes of this run."""
    totals: Counter[tuple[str, str]] = Counter()
    for counts in _workers:
        totals.update({(kind, name): runs for kind, name, runs in counts})
    if host_cuda.was_used():
        totals.update({(c.kind, c.name): c.runs for c in host_cuda.coverage()})
    return [host_cuda.Counted(kind, name, runs) for (kind, name), runs in sorted(totals.items())]


def never_executed() -> list[host_cuda.Counted]:
    """Kernels and wrappers that are compiled in and have not run."""
    return [counted for counted in executed() if counted.runs == 0]


def is_whole(session: pytest.Session) -> bool:
    """Whether this was a run of all tests, to its end."""
    config = session.config
    selected = any(config.getoption(name, None) for name in SELECTING)
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return everything and not selected and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


def report(listed: bool) -> list[str]:
    """One line for the end of a test run and, if asked, one for each kernel that was never executed."""
    every, left = executed(), never_executed()
    kinds = " and ".join(f"{sum(c.kind == kind for c in every)} {kind}s" for kind in ("kernel", "wrapper"))
    first = f"host_cuda: {kinds}, {len(left)} of them never executed by these tests"
    return [first, *(f"  {counted.kind} {counted.name}" for counted in left if listed)]
