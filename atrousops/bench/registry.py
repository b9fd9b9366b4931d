"""What a row of the benchmark is, and which rows there are."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from atrousops.bench.floors import PROBLEMS, Floor
from atrousops.common.checks import bad_choice, bad_value
from atrousops.common.testing import Ready, Run

# Ours against ours: rows of other suites, which are no wins or losses.
SCALING = "scaling"
SUITES = (
    "deeplab",
    "aspp",
    "depthwise",
    "transposed",
    "quantized",
    "unpool",
    "roi",
    "crf",
    "networks",
    "overhead",
    SCALING,
)
# tf32 is float32 that a GPU may multiply as TF32; fp32 is multiplied as float32.
DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DIRECTIONS = tuple(PROBLEMS)


@dataclass(frozen=True)
class Setting:
    """Where and how a row is computed."""

    device: torch.device
    dtype: str
    layout: str
    direction: str

    def tensor(self, value: Tensor, cast: bool = True) -> Tensor:
        """A tensor moved here; with `cast` a floating one takes the row's dtype."""
        value = value.to(self.device, DTYPES[self.dtype] if cast and value.is_floating_point() else value.dtype)
        return value.contiguous(memory_format=LAYOUTS[self.layout]) if value.dim() == 4 else value

    def exact(self) -> Setting:
        """The same in fp64."""
        return replace(self, dtype="fp64", layout="nchw")

    @property
    def element_bytes(self) -> int:
        return DTYPES[self.dtype].itemsize


@dataclass
class Prepared:
    """A row with its tensors made. Each entry gets ready and returns the function that is timed.

    ours: this package's.
    theirs: the incumbents that compute the same, by name; the first is the yardstick for errors.
    exact: the same in fp64.
    yardstick: where no incumbent runs at the row's dtype with PyTorch's own error.
    compiled: given a compiler, PyTorch's way through it.
    missing: incumbents that are not here, and why.
    from_file: those of theirs that read the network from a file, which takes seconds to write; and how many times
        PyTorch's own error they may make. Their memory is not PyTorch's and cannot be counted.
    beside: others that do the same in their own way, so that results cannot be compared; they are timed, without ratio.
    calls: how many calls one repetition makes, for calls too short to be timed alone; the time is then the host's.
    """

    ours: Ready
    theirs: dict[str, Ready]
    exact: Run
    floor: Floor
    kernel: Callable[[], tuple[str, str]]
    gemm: tuple[int, int, int] | None = None
    yardstick: Run | None = None
    compiled: Callable[[Callable[..., Any]], Ready] | None = None
    missing: dict[str, str] = field(default_factory=dict)
    from_file: dict[str, float] = field(default_factory=dict)
    beside: dict[str, Ready] = field(default_factory=dict)
    calls: int = 1


@dataclass(frozen=True)
class Row:
    """One line of the table.

    quick: whether it belongs to the selection of a few minutes.
    needs: packages without which it cannot be prepared.
    """

    suite: str
    case: str
    reason: str
    dtype: str
    layout: str
    direction: str
    prepare: Callable[[Setting], Prepared]
    quick: bool = False
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Names the row in results, selections and comparisons."""
        return f"{self.suite}/{self.case}/{self.dtype}/{self.layout}/{self.direction}"

    def prepared(self, device: torch.device) -> Prepared:
        """The row with its tensors made on a device, the same values in every dtype and layout."""
        seed = sum(ord(letter) * (i + 1) for i, letter in enumerate(self.suite + self.case))
        torch.manual_seed(seed)
        return self.prepare(Setting(device, self.dtype, self.layout, self.direction))


def expand(
    suite: str,
    case: str,
    reason: str,
    prepare: Callable[[Setting], Prepared],
    ways: Mapping[str, Collection[str]],
    quick: Collection[str] = (),
    needs: tuple[str, ...] = (),
) -> Iterator[Row]:
    """The rows of one case.

    Args:
        ways: "DTYPE LAYOUT" to the directions that are measured that way.
        quick: "DTYPE LAYOUT DIRECTION" of those in the quick selection.
    """
    for way, directions in ways.items():
        dtype, layout = way.split()
        for direction in directions:
            is_quick = f"{way} {direction}" in quick
            yield Row(suite, case, reason, dtype, layout, direction, prepare, is_quick, needs)


@dataclass(frozen=True)
class Selection:
    """Which rows; an empty field selects all. `match` is a regular expression, searched in the row's key."""

    suites: tuple[str, ...] = ()
    match: str = ""
    dtypes: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()
    quick: bool = False

    def rows(self) -> list[Row]:
        """The rows selected, in the order of the suites.

        Raises:
            ArgumentError: an unknown name, a regular expression that is none, or nothing selected.
        """
        for argument, values, known in (
            ("suite", self.suites, SUITES),
            ("dtype", self.dtypes, tuple(DTYPES)),
            ("layout", self.layouts, tuple(LAYOUTS)),
            ("pass", self.directions, DIRECTIONS),
        ):
            for value in values:
                if value not in known:
                    bad_choice("bench", argument, known, value)
        try:
            pattern = re.compile(self.match)
        except re.error as error:
            bad_value("bench", "match", "be a regular expression", f"{self.match!r} ({error})")
        rows = [row for suite in self.suites or SUITES for row in suite_rows(suite) if self._has(row, pattern)]
        if not rows:
            bad_value(
                "bench", "selection", "leave at least one row", "none", "`atrousops bench --list` shows all rows."
            )
        return rows

    def _has(self, row: Row, pattern: re.Pattern[str]) -> bool:
        return (
            (not self.quick or row.quick)
            and (not self.dtypes or row.dtype in self.dtypes)
            and (not self.layouts or row.layout in self.layouts)
            and (not self.directions or row.direction in self.directions)
            and pattern.search(row.key) is not None
        )


def suite_rows(suite: str) -> list[Row]:
    """All rows of one suite."""
    return list(importlib.import_module(f"atrousops.bench.suites.{suite}").rows())


def suite_title(suite: str) -> str:
    """What a suite is about, in one line."""
    return (importlib.import_module(f"atrousops.bench.suites.{suite}").__doc__ or suite).splitlines()[0]
