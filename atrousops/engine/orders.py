"""Compares the orders of results in papers with runs of several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from atrousops.common.checks import bad_value

FILE = "_orders.yaml"
# Separates recipe and seed in the name of a run.
SEED = ".seed"
TUNED_CRF = "tuned CRF"
# The one-sided 95 % quantiles of Student's t for n differences, n = 2, 3, ...
_STUDENT = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83)


@dataclass(frozen=True)
class Order:
    """A table of a paper.

    source: paper, table, data set. rows: row of the study's table -> the paper's mIoU in %, or None if the paper has no
    such row. A row is a recipe, "RECIPE, VARIANT" or "RECIPE, tuned CRF". Each row is compared with the last one above
    it that was run with several seeds.
    """

    title: str
    source: str
    rows: dict[str, float | None]


_ORDERS = TypeAdapter(list[Order])


def read(folder: Path) -> list[Order]:
    """The orders in a folder of recipes, if there are any.

    Raises:
        ArgumentError: the file does not hold a list of them.
    """
    file = folder / FILE
    if not file.exists():
        return []
    try:
        return _ORDERS.validate_python(yaml.safe_load(file.read_text()))
    except (ValidationError, yaml.YAMLError) as error:
        bad_value("study", "paths", f"have a list of title, source and rows in {file} ({error})", str(folder))


def scores(runs: Iterable[tuple[str, dict[str, Any]]], row: str) -> dict[int, float]:
    """The mIoU in % of a row, by seed; a run is a recipe's name, with or without its seed, and its scores."""
    recipe, _, way = row.partition(", ")
    found = {}
    for name, values in runs:
        if name.partition(SEED)[0] != recipe:
            continue
        if way == TUNED_CRF:
            miou = values.get("tuned_crf", {}).get("miou")
        else:
            miou = (values.get("variants", {}).get(way, {}) if way else values["summary"]).get("miou")
        if miou is not None:
            found[values["recipe"]["seed"]] = 100 * miou
    return found


def differences(above: dict[int, float], row: dict[int, float]) -> list[float]:
    """The difference between a row and the one above it, for each common seed."""
    return [row[seed] - above[seed] for seed in sorted(above.keys() & row.keys())]


def verdict(paper: float, here: list[float]) -> str:
    """Whether the differences over seeds have the sign of the paper's, by a one-sided t-test at 95 %."""
    if len(here) < 2:
        return "cannot be told: one seed"
    if paper == 0:
        return "the paper has none"
    t = _STUDENT[min(len(here) - 2, len(_STUDENT) - 1)]
    margin = t * statistics.stdev(here) / math.sqrt(len(here))
    towards = statistics.mean(here) if paper > 0 else -statistics.mean(here)
    if towards > margin:
        return "seen"
    return "the other way round" if -towards > margin else "cannot be told"


def section(order: Order, runs: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """The lines of a Markdown table of an order, with the rows of two or more seeds; none for a single row."""
    found = {row: here for row in order.rows if len(here := scores(runs, row)) > 1}
    if len(found) < 2:
        return
    yield from (f"### {order.title}", "", f"{order.source}; mIoU in %.", "")
    yield "| row | the paper's | here | above the row before it: the paper's | here | the paper's order |"
    yield "|---|---|---|---|---|---|"
    last: tuple[float | None, dict[int, float]] | None = None
    for row, here in found.items():
        paper = order.rows[row]
        cells = [row, "" if paper is None else f"{paper:.1f}", figure(list(here.values())), "", "", ""]
        if last is not None and paper is not None and last[0] is not None:
            more = differences(last[1], here)
            cells[3:] = [f"{paper - last[0]:+.1f}", figure(more, "+"), verdict(paper - last[0], more)]
        yield f"| {' | '.join(cells)} |"
        last = paper, here
    yield ""


def figure(values: list[float], sign: str = "") -> str:
    """A single value, or mean and standard deviation of several."""
    if len(values) < 2:
        return "".join(f"{value:{sign}.1f}" for value in values)
    return f"{statistics.mean(values):{sign}.1f} ± {statistics.stdev(values):.1f}"
