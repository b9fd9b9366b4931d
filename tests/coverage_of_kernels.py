"""The CUDA kernels and instruction wrappers that a test run executed under host_cuda, and those that it never did.

A plain `pytest` ends with this. python tests/coverage_of_kernels.py [pytest arguments] lists what those tests leave
out, the file's own choice being the tests that use host_cuda; the exit status says whether the list is empty.
"""

from __future__ import annotations

import sys

import host_cuda
import pytest

# Options that leave tests out, or stop before the last.
SELECTING = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "stepwise", "maxfail", "collectonly")


def never_executed() -> list[host_cuda.Counted]:
    """Kernels and wrappers that are compiled in and have not run in this process."""
    return [counted for counted in host_cuda.coverage() if counted.runs == 0]


def is_whole(session: pytest.Session) -> bool:
    """Whether this was a run of all tests, to its end, in one process."""
    config = session.config
    selected = any(config.getoption(name, None) for name in (*SELECTING, "numprocesses"))
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return everything and not selected and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


def report(listed: bool) -> list[str]:
    """One line for the end of a test run and, if asked, one for each kernel that was never executed."""
    every, left = host_cuda.coverage(), never_executed()
    kinds = " and ".join(f"{sum(c.kind == kind for c in every)} {kind}s" for kind in ("kernel", "wrapper"))
    first = f"host_cuda: {kinds}, {len(left)} of them never executed by these tests"
    return [first, *(f"  {counted.kind} {counted.name}" for counted in left if listed)]


def main(arguments: list[str]) -> int:
    """Tests first, whatever their outcome; then the list."""
    status = pytest.main(["-q", *(arguments or ["-k", "host_cuda or cuda", "tests"])])
    print("\n".join(report(True)))
    return int(status) or int(bool(never_executed()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
