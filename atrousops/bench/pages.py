"""A page for each network: what it is, what came of its recipes, what it costs, a picture."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from atrousops import models
from atrousops.bench.results import DISPATCHED, Report, Result
from atrousops.bench.suites.networks import ON_CAMVID
from atrousops.common.files import write_atomically
from atrousops.data import decode
from atrousops.engine import pictures
from atrousops.engine.predict import load_predictor
from atrousops.engine.table import Scored, scored, sections

# Of the picture of a page, in pixels.
WIDTH = 960
_INDEX = """# Networks

A page each, written by `atrousops study RECIPES --pages docs/networks`: the factory in `atrousops.models`, the scores
of its recipes ([results](../results.md) has them all), and what an image costs.

| network | | parameters, as in its paper | mIoU on CamVid, best recipe |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Photo:
    """A photograph to segment for the pages, where a data set's may not be shown; credit: whose it is, in Markdown."""

    path: Path
    credit: str


def write(
    runs: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    speed: Sequence[Report] = (),
    photo: Photo | None = None,
    table: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Writes NAME.md, and NAME.jpg where there is a picture, of every network, and README.md with a line for each.

    Args:
        runs: folder of runs that `study.main` made.
        folder: where to.
        speed: results of `atrousops bench --suite networks`, of one or more machines.
        photo: what the pictures show of semantic networks; None takes those that training left. Where the run of
            the best recipe is not at hand, its picture stays if the page has it.
        table: the table that `study.main` wrote, whose rows count although their runs are not at hand.

    Returns:
        The pages.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Scored]] = {}
    for key, values in scored(Path(runs), None if table is None else Path(table)):
        found.setdefault(values["recipe"]["model"]["name"], []).append((key, values))
    pages, lines = [], []
    for name in models.list("networks"):
        recipes = found.get(name, [])
        shown = _picture(Path(runs), recipes, folder / f"{name}.jpg", photo)
        parameters = _parameters(name)
        text = "\n".join([*_about(name, parameters), *_scores(recipes), *shown, *_costs(name, speed)])
        pages.append(folder / f"{name}.md")
        _write(pages[-1], text)
        lines.append(_line(name, parameters, recipes))
    _write(folder / "README.md", _INDEX + "\n".join(lines))
    return pages


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda name: Path(name).write_text(text + "\n"))


def _doc(name: str) -> str:
    return inspect.getdoc(models.registry.factory(name)) or ""


def _parameters(name: str) -> str:
    with torch.device("meta"):
        return f"{sum(p.numel() for p in models.build(name).parameters()) / 1e6:.1f} M"


def _line(name: str, parameters: str, recipes: list[Scored]) -> str:
    scores = [values["summary"]["miou"] for key, values in recipes if key.startswith("camvid/")]
    best = f"{100 * max(scores):.1f} %" if scores else ""
    return f"| [{name}]({name}.md) | {_doc(name).splitlines()[0]} | {parameters} | {best} |"


def _about(name: str, parameters: str) -> Iterator[str]:
    # From the first section on it is no Markdown.
    head, *rest = re.split(r"^(?=(?:Args|Returns|Raises):\n)", _doc(name), maxsplit=1, flags=re.MULTILINE)
    yield f"# {name}\n\n{head.strip()}\n"
    taken = inspect.signature(models.registry.factory(name)).parameters.values()
    arguments = ", ".join(f"{p.name}={p.default!r}" for p in taken)
    yield f"`atrousops.models.{name}({arguments})` has {parameters} parameters.\n"
    loads = [f"| `{key}` | {entry.source} |" for key, entry in models.PUBLISHED.items() if entry.network == name]
    if loads:
        yield "Weights that others published and `load_published` reads:\n\n| name | from |\n|---|---|"
        yield "\n".join(loads) + "\n"
    else:
        yield "`load_published` reads no weights of it.\n"
    for tail in rest:
        yield f"```text\n{tail.rstrip()}\n```\n"


def _scores(recipes: list[Scored]) -> Iterator[str]:
    yield from sections(recipes)
    if recipes:
        yield "How these came about stands in [results](../results.md).\n"


def _picture(runs: Path, recipes: list[Scored], path: Path, photo: Photo | None) -> Iterator[str]:
    """The best recipe's: a photograph beside the network's labels, or two rows of training's last pictures."""
    for key, values in sorted(recipes, key=lambda recipe: -recipe[1]["summary"]["miou"]):
        left = sorted((runs / key / "pictures").glob("*.png"))
        weights = runs / key / "weights.safetensors"
        if kept := _kept(path, key, weights):
            yield kept
            return
        if photo is not None and weights.exists() and values["recipe"]["data"]["name"] != "nuclei":
            image = _segmented(weights, photo.path)
            caption = f"The labels of `{key}` for a photograph ({photo.credit})"
        elif left:
            image, caption = Image.fromarray(decode.read_image(left[-1])), f"Images, labels, and the labels of `{key}`"
            image = image.crop((0, 0, image.width, image.height // 2))
        else:
            continue
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
        write_atomically(path, partial(image.save, format="JPEG", quality=85))
        yield f"{caption}:\n\n![predictions]({path.name})\n"
        return


def _kept(path: Path, key: str, weights: Path) -> str | None:
    """What stands under the page's picture of a run, if that is no longer at hand."""
    page = path.with_suffix(".md")
    if weights.exists() or not (path.exists() and page.exists()):
        return None
    shown = re.search(rf"^.*`{re.escape(key)}`.*:\n\n!\[predictions\].*\n", page.read_text(), re.MULTILINE)
    return shown[0] if shown else None


def _segmented(weights: Path, path: Path) -> Image.Image:
    predictor, picture = load_predictor(weights), decode.read_image(path)
    found = pictures.overlay_image(picture, predictor(picture), pictures.class_colors(predictor.classes))
    both = Image.new("RGB", (2 * found.width, found.height))
    both.paste(Image.fromarray(picture))
    both.paste(found, (found.width, 0))
    return both


def _costs(name: str, speed: Sequence[Report]) -> Iterator[str]:
    rows = [(report, row) for report in speed for row in report.results if row.case == f"{name}, {ON_CAMVID}"]
    if not rows:
        return
    yield f"## Cost\n\nOne image of {ON_CAMVID}, to labels, with the defaults above.\n"
    yield "| | images a second | memory at most | machine |\n|---|---|---|---|"
    for report, row in rows:
        for way in (DISPATCHED, row.incumbent, *row.beside):
            if way in row.timings or way in row.beside:
                yield f"{_cost(row, way)} {report.environment.get('device', '')} |"


def _cost(row: Result, way: str) -> str:
    names = {DISPATCHED: "atrousops", "torchvision": "torchvision's"}
    name = f"{way}, of its own design" if way in row.beside else names.get(way, "on PyTorch's kernels")
    memory = f"{row.memory[way] / 1e6:.0f} MB" if way in row.memory else ""
    timing = (row.timings | row.beside)[way]
    return f"| {name}, {row.dtype} {row.layout} | {1 / timing.median:.2f} | {memory} |"
