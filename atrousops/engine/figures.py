"""Figures of a training run: its curves and its confusion matrix."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from atrousops.common.figures import COLORS, NoFigures, new_figure
from atrousops.common.files import write_atomically

__all__ = ["NoFigures", "draw", "keep_confusion"]

CURVES, CONFUSION = "curves.png", "confusion.png"
_TABLE = "confusion.csv"
NAMES = (CURVES, CONFUSION, _TABLE)
_WHAT, _EXTRA = "train: curves.png and confusion.png", "train"
# Up to this many classes every cell of the matrix shows its number.
_NUMBERED = 25


def keep_confusion(folder: Path, step: int, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """Writes confusion.csv: pixels by true class (rows) and predicted class (columns), after a step.

    Raises:
        OutputError: it could not be written.
    """
    text = io.StringIO()
    rows = [(f"step {step}", *classes), *((name, *row) for name, row in zip(classes, counts, strict=True))]
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(folder / _TABLE, lambda name: Path(name).write_text(text.getvalue()))


def draw(folder: Path) -> list[Path]:
    """Draws a run's figures from its tables, so that a resumed run's curves are complete; returns the files.

    curves.png has loss and learning rate by step (log.csv), and mIoU (val.csv) if there was a validation; confusion.png
    has the pixels of the last validation (confusion.csv), as shares of each true class.

    Raises:
        NoFigures: matplotlib is not installed.
        OutputError: a picture could not be written.
    """
    figures = {}
    log, val = (_columns(folder / name) for name in ("log.csv", "val.csv"))
    if log["step"]:
        figures[CURVES] = _curves(log, val)
    if (folder / _TABLE).exists():
        figures[CONFUSION] = _confusion(folder / _TABLE)
    for name, figure in figures.items():
        write_atomically(folder / name, partial(figure.savefig, format="png", dpi=100))
    return [folder / name for name in figures]


def _columns(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    return {name: [float(row[i]) for row in rows] for i, name in enumerate(names)}


def _curves(log: dict[str, list[float]], val: dict[str, list[float]]) -> Any:
    panels = [("loss", log, 1.0), ("lr", log, 1.0), *([("miou", val, 100.0)] if val["step"] else [])]
    labels = {"loss": "loss", "lr": "learning rate", "miou": "mean IoU, %"}
    figure = new_figure(_WHAT, _EXTRA, 8, 1 + 2.2 * len(panels))
    grid = figure.subplots(len(panels), sharex=True)
    for axes, (name, table, unit), color in zip(grid, panels, COLORS):
        steps, values = table["step"], unit * np.array(table[name])
        if name == "loss":
            width = max(1, len(values) // 50)
            axes.plot(steps, values, color=color, alpha=0.35, linewidth=0.8, label="of each step")
            axes.plot(steps, _mean_of_last(values, width), color=color, label=f"mean of the last {width}")
            axes.legend(fontsize=8, frameon=False)
        else:
            axes.plot(steps, values, "o-" if name == "miou" else "-", color=color, markersize=4)
        axes.set_ylabel(labels[name])
        axes.grid(color="0.9")
    grid[-1].set_xlabel("step")
    return figure


def _mean_of_last(values: np.ndarray, width: int) -> np.ndarray:
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - width, 0)
    return np.asarray((sums[ends] - sums[begins]) / (ends - begins))


def _confusion(path: Path) -> Any:
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    classes, counts = head[1:], np.array([row[1:] for row in rows], dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    # A class without labels has an empty row.
    shares = 100 * counts / np.where(totals > 0, totals, 1)
    side = min(3 + 0.5 * len(classes), 24)
    figure = new_figure(_WHAT, _EXTRA, side + 1, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    places = range(len(classes))
    small = 9 if len(classes) <= 40 else 5
    axes.set_xticks(places, classes, rotation=90, fontsize=small)
    axes.set_yticks(places, classes, fontsize=small)
    if len(classes) <= _NUMBERED:
        for i, j in np.ndindex(shares.shape):
            color = "white" if shares[i, j] > 60 else "black"
            axes.annotate(f"{shares[i, j]:.0f}", (j, i), ha="center", va="center", color=color, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"% of each true class's pixels, {head[0]}", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8, label="%")
    return figure
