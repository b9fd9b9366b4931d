"""Scores of many runs as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from atrousops.common.checks import bad_value
from atrousops.common.files import write_atomically

# A run by the name of its recipe, with its file of scores.
Scored = tuple[str, dict[str, Any]]

SCORES = "scores.json"
# Of the trimap's band, in pixels.
WIDTH = 3

_COLUMNS = (
    "recipe",
    "network",
    "parameters",
    "steps x batch",
    "training",
    "mIoU",
    "+ CRF",
    "tuned",
    "pixels",
    "borders",
)
_OBJECTS = ("PQ", "SQ", "RQ", "mask AP")
_HEADER = """# Results

Every row is one run of `atrousops study`, which writes this file and the scores beside it (.json); nothing in it is
written by hand. A row's recipe is trained and judged again by

    atrousops train atrousops/configs/RECIPE.yaml --output runs/RECIPE
    atrousops evaluate atrousops/configs/RECIPE.yaml --weights runs/RECIPE/weights.safetensors --split SPLIT

with the data of the recipe in `$ATROUSOPS_DATA`. The budget is small, as two CPU cores bear it, the networks are narrow
or shallow where the recipe says so, and start from nothing unless `init` names a trunk or a run: the figures compare
networks under that budget and are far from those of the papers.
"""


def scored(runs: Path, table: Path | None = None) -> list[Scored]:
    """The runs that have scores, and those whose scores an earlier study left beside its table, in order of names.

    Raises:
        ArgumentError: the file beside the table is not of a study.
    """
    found = {} if table is None else _kept(_beside(table))
    for file in runs.glob(f"*/*/{SCORES}"):
        found[f"{file.parts[-3]}/{file.parts[-2]}"] = json.loads(file.read_text())
    return sorted(found.items())


def _beside(table: Path) -> Path:
    return table.with_suffix(".json")


def _kept(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text())
    except ValueError as error:
        bad_value("study", "table", f"have readable scores beside it ({error})", str(path), "Name another table.")
    if not isinstance(kept, dict) or not all(isinstance(v, dict) and "recipe" in v for v in kept.values()):
        bad_value("study", "table", "have a study's scores beside it", str(path), "Name another table.")
    return kept


def sections(runs: Iterable[Scored]) -> Iterator[str]:
    """A Markdown table for each data set and split."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, values in runs:
        key = values["recipe"]["data"]["name"], values["split"]
        rows.setdefault(key, []).extend(_rows(name, values))
    for (data, split), lines in rows.items():
        columns = [*_COLUMNS, *(_OBJECTS if lines[0].count("|") > len(_COLUMNS) + 2 else ()), "seed"]
        head = [f"## {data}, {split}", "", "Scores in %.", ""]
        yield "\n".join([*head, f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *lines, ""])


def write_table(runs: Path, path: Path) -> None:
    """Writes the Markdown file of all runs that have scores, here or beside the table, and their scores beside it."""
    found = scored(runs, path)
    lines = [_HEADER, *sections(found), _notes(found)]
    write_atomically(path, lambda name: Path(name).write_text("\n".join(lines)))
    write_atomically(_beside(path), lambda name: Path(name).write_text(json.dumps(dict(found), indent=1) + "\n"))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _rows(name: str, values: dict[str, Any]) -> list[str]:
    """A recipe's row, and one for each other way in which its weights were judged."""
    recipe, summary, percent = values["recipe"], values["summary"], _percent
    cells = [
        name,
        recipe["model"]["name"],
        f"{values['parameters'] / 1e6:.2f} M",
        f"{values['steps']} x {recipe['batch']}",
        f"{values['seconds'] / 60:.0f} min",
        percent(summary["miou"]),
        percent(values.get("crf")),
        percent(values.get("tuned_crf", {}).get("miou")),
        percent(values["pixel_accuracy"]),
        percent(values["boundary_accuracy"]),
    ]
    if "pq" in summary:
        cells += [percent(value) for value in (summary["pq"], summary["sq"], summary["rq"], values["ap"])]
    rows = ["| " + " | ".join([*cells, str(recipe["seed"])]) + " |"]
    for other, scores in values.get("variants", {}).items():
        found = percent(scores["miou"]), "", "", percent(scores["pixel_accuracy"]), percent(scores["boundary_accuracy"])
        rows.append(f"| {name}, {other} | | | | | {' | '.join(found)} | |")
    return rows


def _notes(runs: Iterable[Scored]) -> str:
    made = {(values["torch"], values["threads"], values["device"]) for _, values in runs}
    by = "; ".join(f"torch {version}, {threads} threads, {device}" for version, threads, device in sorted(made))
    return (
        f"Computed with {by}. pixels: pixel accuracy; borders: the same within {WIDTH} pixels of a border; tuned: the "
        "mIoU with the CRF's settings searched on validation images; training: "
        "seconds of training steps, on a machine that may have had other work.\n"
    )
