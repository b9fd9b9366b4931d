"""Tables of the scores of many runs, in Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from atrousops.common.checks import bad_value
from atrousops.common.files import write_atomically
from atrousops.engine import orders
from atrousops.engine.orders import SEED

# The name of a run's recipe, and its scores.
Scored = tuple[str, dict[str, Any]]

SCORES = "scores.json"
# Width of the trimap's band, in pixels.
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

Every row is a recipe, run by `atrousops study` with each of its seeds. The command writes this file and the .json file
of scores beside it; nothing here is written by hand. To train and evaluate a row's recipe again, run

    atrousops study atrousops/configs/RECIPE.yaml --seeds SEEDS

or, for a single run,

    atrousops train atrousops/configs/RECIPE.yaml --output runs/RECIPE
    atrousops evaluate atrousops/configs/RECIPE.yaml --weights runs/RECIPE/weights.safetensors --split SPLIT

with the data of the recipe in `$ATROUSOPS_DATA`. The budget is small enough for two CPU cores. The recipe says which
networks are narrower or shallower than in their papers, and whether they start from a trunk or another run (`init`)
instead of random weights. The scores compare networks under that budget and are far below those of the papers.
"""

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_ORDERS = """## The papers' orders

Each row with several seeds is compared with the row above it, seed by seed. "seen" and "the other way round" mean that
the difference is significant in a one-sided t-test at 95 % over the seeds of both; "cannot be told" means that it is
not. Budget, images and widths differ from the papers': an order that is seen here supports the paper's; one that is
not seen does not refute it.
"""


def scored(runs: Path, table: Path | None = None) -> list[Scored]:
    """The runs that have scores, and those stored beside the table by an earlier study, sorted by name.

    Raises:
        ArgumentError: the file beside the table is not that of a study.
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


def by_recipe(runs: Iterable[Scored]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Recipes by name, each with its runs, one per seed."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, values in runs:
        # A run without a seed in its name may belong to an earlier recipe of that name, so it has its own row.
        found.setdefault(name.partition(SEED)[:2], []).append(values)
    return [(name, seeds) for (name, _), seeds in found.items()]


def sections(runs: Iterable[Scored]) -> Iterator[str]:
    """A Markdown table for each data set and split."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, seeds in by_recipe(runs):
        key = seeds[0]["recipe"]["data"]["name"], seeds[0]["split"]
        rows.setdefault(key, []).extend(_rows(name, seeds))
    for (data, split), lines in rows.items():
        columns = [*_COLUMNS, *(_OBJECTS if lines[0].count("|") > len(_COLUMNS) + 2 else ()), "seeds"]
        head = [f"## {data}, {split}", "", "Scores in %.", ""]
        yield "\n".join([*head, f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *lines, ""])


def write_table(runs: Path, path: Path, folders: Iterable[Path] = ()) -> None:
    """Writes the Markdown table, and the JSON file beside it, of all runs with scores in `runs` or in that file.

    Orders of papers are read from these folders of recipes and from this package's.
    """
    found = scored(runs, path)
    lines = [_HEADER, *sections(found), _notes(found), *_orders(found, folders)]
    write_atomically(path, lambda name: Path(name).write_text("\n".join(lines)))
    write_atomically(_beside(path), lambda name: Path(name).write_text(json.dumps(dict(found), indent=1) + "\n"))


def _orders(found: list[Scored], folders: Iterable[Path]) -> Iterator[str]:
    own = {_CONFIGS / name.partition("/")[0] for name, _ in found}
    tables = [order for folder in sorted({f.resolve() for f in own.union(folders)}) for order in orders.read(folder)]
    if tables:
        yield _ORDERS
    for order in tables:
        yield from orders.section(order, found)


def _percent(values: Iterable[float | None]) -> str:
    return orders.figure([100 * value for value in values if value is not None])


def _rows(name: str, seeds: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of a recipe: one for the recipe and one for each variant; `seeds` has a run per seed."""
    values = seeds[0]
    recipe = values["recipe"]
    summaries = [run["summary"] for run in seeds]
    cells = [
        name,
        recipe["model"]["name"],
        f"{values['parameters'] / 1e6:.2f} M",
        f"{values['steps']} x {recipe['batch']}",
        f"{statistics.mean(run['seconds'] for run in seeds) / 60:.0f} min",
        _percent(summary["miou"] for summary in summaries),
        _percent(run.get("crf") for run in seeds),
        _percent(run.get("tuned_crf", {}).get("miou") for run in seeds),
        _percent(run["pixel_accuracy"] for run in seeds),
        _percent(run["boundary_accuracy"] for run in seeds),
    ]
    if "pq" in summaries[0]:
        cells += [_percent(summary[key] for summary in summaries) for key in ("pq", "sq", "rq")]
        cells.append(_percent(run["ap"] for run in seeds))
    cells.append(" ".join(str(run["recipe"]["seed"]) for run in seeds))
    rows = [f"| {' | '.join(cells)} |"]
    for other in values.get("variants", {}):
        ways = [run["variants"][other] for run in seeds]
        miou, pixels, borders = (
            _percent(way[key] for way in ways) for key in ("miou", "pixel_accuracy", "boundary_accuracy")
        )
        rows.append(f"| {name}, {other} | | | | | {miou} |  |  | {pixels} | {borders} | |")
    return rows


def _notes(runs: Iterable[Scored]) -> str:
    made = {(values["torch"], values["threads"], values["device"]) for _, values in runs}
    by = "; ".join(f"torch {version}, {threads} threads, {device}" for version, threads, device in sorted(made))
    return (
        f"Computed with {by}. pixels: pixel accuracy; borders: the same within {WIDTH} pixels of a border; tuned: the "
        "mIoU with the CRF's settings searched on validation images; training: minutes of training steps, on a machine "
        "that may have had other work. With several seeds a figure is mean ± standard deviation.\n"
    )
