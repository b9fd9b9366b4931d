"""What was measured, as a file: rows with their timings, and where they were taken. Two files can be compared."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atrousops.bench.floors import Floor
from atrousops.bench.machine import Ceilings
from atrousops.common.checks import bad_value
from atrousops.common.files import write_atomically
from atrousops.common.testing import Timing

SCHEMA = 2
# Fields of a result that hold timings.
_TIMED = ("timings", "beside", "ratios")
DISPATCHED, OWN, TRITON, GEMM = "dispatched", "own kernel", "triton", "gemm"


@dataclass
class Result:
    """One row, measured.

    timings: seconds a call by name: "dispatched", "own kernel", "triton", "gemm" and the incumbents'.
    ratios: by our names, the fastest incumbent's time over ours, round by round.
    wrong: by name, what is wrong with a result; failed: why one could not run; missing: incumbents that are not here.
    error: why nothing could be measured at all.
    gemm: M, N, K of the matrix product of equal work.
    memory: bytes that a call has from PyTorch's allocator at most, by name.
    beside: seconds a call of those that compute something else.
    """

    suite: str
    case: str
    reason: str
    dtype: str
    layout: str
    direction: str
    kernel: str = ""
    why: str = ""
    timings: dict[str, Timing] = field(default_factory=dict)
    ratios: dict[str, Timing] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    error: str = ""
    floor: Floor | None = None
    floor_seconds: float | None = None
    gemm: tuple[int, int, int] | None = None
    memory: dict[str, int] = field(default_factory=dict)
    beside: dict[str, Timing] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """As `Row.key`."""
        return f"{self.suite}/{self.case}/{self.dtype}/{self.layout}/{self.direction}"

    @property
    def is_wrong(self) -> bool:
        """Whether a result of ours is wrong, so that the row has no ratio."""
        return any(name in self.wrong for name in (DISPATCHED, OWN, TRITON))

    @property
    def incumbents(self) -> dict[str, Timing]:
        """The timings of others, the fastest first."""
        others = {name: t for name, t in self.timings.items() if name not in (DISPATCHED, OWN, TRITON, GEMM)}
        return dict(sorted(others.items(), key=lambda item: item[1].median))

    @property
    def incumbent(self) -> str | None:
        """The fastest of those that compute the same."""
        return next(iter(self.incumbents), None)

    def ratio(self, name: str = DISPATCHED) -> float | None:
        """The fastest incumbent's time over that of `name`, the median of all rounds: above 1 ours is faster."""
        return self.ratios[name].median if name in self.ratios else None

    def is_even(self, name: str = DISPATCHED) -> bool:
        """Whether `ratio` is away from 1 by no more than it may be off."""
        ratio = self.ratios.get(name)
        return ratio is not None and abs(ratio.median - 1) <= ratio.error

    @property
    def share(self) -> float | None:
        """The floor's time over ours: 1 is as fast as this machine's measured ceilings allow."""
        if self.floor_seconds is None or DISPATCHED not in self.timings:
            return None
        return self.floor_seconds / self.timings[DISPATCHED].median

    @property
    def of_gemm(self) -> float | None:
        """The time of the matrix product of equal work over ours."""
        if GEMM not in self.timings or DISPATCHED not in self.timings:
            return None
        return self.timings[GEMM].median / self.timings[DISPATCHED].median

    def as_json(self) -> dict[str, Any]:
        """A dict for JSON, with what can be derived beside what was measured."""
        derived = {"incumbent": self.incumbent, "ratio": self.ratio(), "ratio_own": self.ratio(OWN)}
        derived["even"] = self.is_even()
        derived["ratio_triton"] = self.ratio(TRITON)
        return (
            _without_rounds(dataclasses.asdict(self))
            | derived
            | {"share_of_floor": self.share, "share_of_gemm": self.of_gemm}
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Result:
        """The inverse of `as_json`."""
        values = {"beside": {}, **values}  # older files have none
        known = {f.name for f in dataclasses.fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        for kind in _TIMED:
            given[kind] = {name: Timing(**t) for name, t in values[kind].items()}
        given["floor"] = Floor(**values["floor"]) if values["floor"] else None
        given["gemm"] = tuple(values["gemm"]) if values["gemm"] else None
        return cls(**given)


def _without_rounds(values: dict[str, Any]) -> dict[str, Any]:
    """Hundreds of numbers a row, of which medians and quartiles are kept."""
    for kind in _TIMED:
        for timing in values[kind].values():
            del timing["seconds"]
    return values


@dataclass
class Report:
    """Everything about one run."""

    environment: dict[str, Any]
    ceilings: Ceilings
    results: list[Result] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the file in one step, so that it is whole whenever the run ends."""
        content = {
            "schema": SCHEMA,
            "environment": self.environment,
            "ceilings": dataclasses.asdict(self.ceilings),
            "rows": [result.as_json() for result in self.results],
            "left_out": self.left_out,
        }
        text = json.dumps(content, indent=1)
        write_atomically(path, lambda temporary: Path(temporary).write_text(text + "\n"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Reads a file that `save` wrote.

        Raises:
            OSError: no such file.
            ArgumentError: the file is something else, or of another version of this format.
        """
        try:
            content = json.loads(Path(path).read_text())
            schema = content["schema"]
            if schema == SCHEMA:
                return cls(
                    content["environment"],
                    Ceilings(**content["ceilings"]),
                    [Result.from_json(row) for row in content["rows"]],
                    content["left_out"],
                )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            bad_value("bench", str(path), "be a file of results that `atrousops bench` wrote", what)
        bad_value("bench", str(path), f"have schema {SCHEMA}", schema, "Measure again with this version.")


def geometric_mean(values: Iterable[float]) -> float | None:
    """exp(mean(log)); None of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None
