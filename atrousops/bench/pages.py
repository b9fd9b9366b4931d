"""A page for each network: what it is, a drawing of its stages, its weights, scores of its recipes, what it costs."""

from __future__ import annotations

import inspect
import os
import re
import statistics
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from atrousops import models
from atrousops.bench import costs, drawing, flow
from atrousops.bench.results import DISPATCHED, Report, Result
from atrousops.bench.suites.networks import ON_CAMVID
from atrousops.common.files import write_atomically
from atrousops.engine.table import Scored, by_recipe, scored, sections

# Of the image whose cost is counted, in pixels.
SIDE = 513
# Networks that look into their images, with sides of two: on the device "meta" they do not run.
_ON_CPU = {"crfrnn": (33, 65), "mask_rcnn": (129, 257)}
_CAPTION = """A box is a stage, and an arrow leads from a stage to one that reads its result. The drawing is made from a
run of the module. Wide and pale boxes are fine maps, narrow and dark ones coarse: 1/8 means one position for 8 pixels
along each axis. Grey boxes give maps of one fixed size, or of several. An orange outline marks convolutions with a rate
above 1. On the left are the names of modules."""
_PICTURES = {
    "deeplabv3plus_efficientnet_lite2": (
        "../demo.jpg",
        "Left: a photograph (the astronaut Eileen Collins, NASA, public domain). Middle: the pixels that this network "
        "takes for a person, with the weights that come with the package. Right: the same after the dense CRF.",
    ),
    "unet": (
        "unet.jpg",
        "Two microscope images of the nuclei set. From left to right: the image, the nuclei that people outlined, and "
        "those that the recipe `nuclei/unet_lite0` found.",
    ),
}
_INDEX = """# Networks

A page each, written by `atrousops study RECIPES --pages docs/networks`: what the factory in `atrousops.models` builds,
a drawing of its stages, its weights, the scores of its recipes ([results](../results.md) has them all), and what an
image costs. Multiply-adds are those of one image of 513x513 pixels.

| network | | parameters | multiply-adds | mIoU on CamVid, best recipe |
|---|---|---|---|---|
"""


def write(
    runs: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    speed: Sequence[Report] = (),
    table: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Writes NAME.md and the drawing NAME.svg of every network, and README.md with a line for each.

    Args:
        runs: folder of runs that `study.main` made.
        folder: where to.
        speed: results of `atrousops bench --suite networks`, of one or more machines.
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
        above = [*_about(name, folder), *_weights(name), *_picture(name, folder)]
        text = "\n".join([*above, *_scores(recipes), *_costs(name, speed)])
        pages.append(folder / f"{name}.md")
        _write(pages[-1], text)
        lines.append(_line(name, recipes))
    _write(folder / "README.md", _INDEX + "\n".join(lines))
    return pages


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda name: Path(name).write_text(text + "\n"))


def _doc(name: str) -> str:
    return inspect.getdoc(models.registry.factory(name)) or ""


def _line(name: str, recipes: list[Scored]) -> str:
    found = [runs for recipe, runs in by_recipe(recipes) if recipe.startswith("camvid/")]
    scores = [statistics.mean(values["summary"]["miou"] for values in runs) for runs in found]
    best = f"{100 * max(scores):.1f} %" if scores else ""
    return f"| [{name}]({name}.md) | {_doc(name).splitlines()[0]} | {' | '.join(_counted(name)[:2])} | {best} |"


def _about(name: str, folder: Path) -> Iterator[str]:
    # From the first section on it is no Markdown.
    head, *rest = re.split(r"^(?=(?:Args|Returns|Raises):\n)", _doc(name), maxsplit=1, flags=re.MULTILINE)
    yield f"# {name}\n\n{head.strip()}\n"
    if name in models.registry.NETWORKS:
        write_atomically(folder / f"{name}.svg", lambda path: Path(path).write_text(_drawn(name)))
        yield f"## Stages\n\n{_CAPTION}\n\n![The stages of {name}]({name}.svg)\n"
    taken = inspect.signature(models.registry.factory(name)).parameters.values()
    arguments = ", ".join(f"{p.name}={_shown(p.default)}" for p in taken if p.kind is not p.VAR_KEYWORD)
    yield f"## Call\n\n`atrousops.models.{name}({arguments})`\n"
    for tail in rest:
        yield f"```text\n{tail.rstrip()}\n```\n"


def _shown(default: Any) -> str:
    text = repr(default)
    return text if len(text) < 60 else f"{type(default).__name__}(...)"


def _weights(name: str) -> Iterator[str]:
    yield "## Weights\n"
    headers = {key: models.registry.header_of(models.registry.locate(key)) for key in models.registry.SHIPPED}
    ours = [key for key, info in headers.items() if info is not None and info.network == name]
    for key in ours:
        yield f'`atrousops.models.load("{key}")` gives the network with weights that come with the package.\n'
    loads = [f"| `{key}` | {entry.source} |" for key, entry in models.PUBLISHED.items() if entry.network == name]
    if loads:
        yield "`atrousops.models.load_published(NAME, FILE)` gives the network with weights that others published:\n"
        yield "| NAME | where FILE comes from |\n|---|---|"
        yield "\n".join(loads) + "\n"
    elif not ours:
        yield "`atrousops.models.load` and `load_published` have no entry for this factory. Where weights of another"
        yield "fit, the text above says so.\n"


def _scores(recipes: list[Scored]) -> Iterator[str]:
    yield from sections(recipes)
    if recipes:
        yield "[Results](../results.md) says how these runs were made. A row of one seed tells nothing of another's.\n"


def _picture(name: str, folder: Path) -> Iterator[str]:
    """A result that is worth a look, where the folder has it."""
    file, caption = _PICTURES.get(name, ("", ""))
    if file and (folder / file).exists():
        yield f"## A result\n\n{caption}\n\n![A result of {name}]({file})\n"


@cache
def _drawn(name: str) -> str:
    """The drawing of a network of ours, with its default arguments."""
    sides = _ON_CPU.get(name)
    with torch.device("cpu" if sides else "meta"):
        network = models.build(name)
    return drawing.svg(flow.flow(network, "cpu", sides) if sides else flow.flow(network), f"The stages of {name}")


@cache
def _counted(name: str) -> tuple[str, str, str]:
    """Parameters; multiply-adds and bytes of an image, where they do not depend on what is in it."""
    with torch.device("meta"):
        network = models.build(name)
    parameters = sum(p.numel() for p in network.parameters())
    short = f"{parameters / 1e6:.1f} M" if parameters > 1e5 else f"{parameters / 1e6:.3f} M"
    if name in _ON_CPU or name not in models.registry.NETWORKS:
        return short, "", ""
    operations, most = costs.count(network, SIDE)
    return short, f"{operations / 1e9:.1f} G", f"{most / 1e6:.0f} MB"


def _costs(name: str, speed: Sequence[Report]) -> Iterator[str]:
    parameters, operations, most = _counted(name)
    yield "## Cost\n\n| parameters | multiply-adds | maps at most, fp32 |\n|---|---|---|"
    yield f"| {parameters} | {operations} | {most} |\n"
    if operations:
        yield (
            f"Counted from the shapes of one image of {SIDE}x{SIDE} pixels with the defaults above, not measured: the "
            "multiply-adds of convolutions and matrix products, and the maps that live at one time.\n"
        )
    else:
        yield "How much is computed depends on what is in the image, and is not counted here.\n"
    rows = [(report, row) for report in speed for row in report.results if row.case == f"{name}, {ON_CAMVID}"]
    if not rows:
        return
    yield f"Measured: one image of {ON_CAMVID}, from the image to labels, with the defaults above.\n"
    yield "| | images a second | memory at most | machine | day |\n|---|---|---|---|---|"
    for report, row in rows:
        where = f"{report.environment.get('device', '')} | {report.environment.get('date', '')[:10]} |"
        for way in (DISPATCHED, row.incumbent, *row.beside):
            if way in row.timings or way in row.beside:
                yield f"{_cost(row, way)} {where}"


def _cost(row: Result, way: str) -> str:
    names = {DISPATCHED: "atrousops", "torchvision": "torchvision's"}
    name = f"{way}, of its own design" if way in row.beside else names.get(way, "on PyTorch's kernels")
    memory = f"{row.memory[way] / 1e6:.0f} MB" if way in row.memory else ""
    timing = (row.timings | row.beside)[way]
    return f"| {name}, {row.dtype} {row.layout} | {1 / timing.median:.2f} | {memory} |"
