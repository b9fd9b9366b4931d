"""Trains and scores many recipes, and writes one table; an interrupted study can be resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from atrousops import models
from atrousops.common.checks import ArgumentError, bad_value
from atrousops.common.files import write_atomically
from atrousops.engine import config as configs
from atrousops.engine import evaluate, train, tune_crf
from atrousops.engine.config import Config, Variant
from atrousops.engine.orders import SEED
from atrousops.engine.table import SCORES, WIDTH, write_table
from atrousops.nn import DenseCRF


def main(
    paths: Sequence[str | os.PathLike[str]],
    *,
    runs: str | os.PathLike[str] = "runs",
    table: str | os.PathLike[str] = "docs/results.md",
    data_root: str | None = None,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] = (),
    progress: bool = True,
    say: Callable[[str], object] = print,
) -> int:
    """Trains and scores recipes one after another, and writes the table after each.

    A recipe that already has scores is not run again; one with a checkpoint is resumed. A recipe that fails is reported
    and skipped.

    Args:
        paths: recipes, or folders, whose recipes without a leading underscore are used.
        runs: folder with a subfolder for each recipe, named after the recipe's folder and name.
        table: Markdown file to write, with all runs in `runs` and those in the JSON file of the same name beside it, so
            that rows are kept without their weights.
        data_root: folder of the data, instead of the recipes'.
        overrides: "part.key=value" entries that replace the recipes'.
        seeds: run each recipe with each seed, in the folder RECIPE.seedN; its row has mean and standard deviation. By
            default, once with the recipe's seed. `{seed}` in `init.weights` is replaced by the seed.
        progress: draw progress bars.
        say: called with messages.

    Returns:
        The number of failures.

    Raises:
        ArgumentError: there is no recipe, or the file beside the table is not of a study.
        KeyboardInterrupt: Ctrl-C, after the checkpoint was written.
        OutputError: writing failed, for example because the disk is full.
    """
    chosen = recipes(paths)
    folders = {path.parent for path in chosen}
    # Written now, to find a table that cannot be written before the first training.
    write_table(Path(runs), Path(table), folders)
    failed = 0
    for path, seed in product(chosen, seeds or (None,)):
        folder = Path(runs) / path.parent.name / (path.stem if seed is None else f"{path.stem}{SEED}{seed}")
        try:
            replaced = overrides if seed is None else (*overrides, *_seeded(path, seed, overrides))
            recipe = configs.load(path, replaced)
            if (folder / SCORES).exists():
                _check_same(folder, recipe)
                _add_missing(path, recipe, folder, data_root, replaced, progress, say)
                continue
            say(f"{path} -> {folder}")
            _run(path, recipe, folder, data_root, replaced, progress)
        except (ArgumentError, FileNotFoundError, ImportError, RuntimeError) as error:
            say(f"{path}: {error}")
            failed += 1
        write_table(Path(runs), Path(table), folders)
    # Written again, because scores can be added to a recipe that needed no training.
    write_table(Path(runs), Path(table), folders)
    return failed


def recipes(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The recipes among the paths and directly in them, in order.

    Raises:
        ArgumentError: there is none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.glob("*.yaml") if not p.name.startswith("_")) if path.is_dir() else [path]
        if not inside:
            bad_value("study", "paths", "be recipes, or folders with *.yaml directly in them", str(path))
        found += inside
    return found


def _seeded(path: Path, seed: int, overrides: Sequence[str]) -> list[str]:
    weights = configs.load(path, overrides).init.weights
    return [f"seed={seed}", *([f"init.weights={weights.replace('{seed}', str(seed))}"] if weights else [])]


def _run(
    path: Path, recipe: Config, folder: Path, data_root: str | None, overrides: Sequence[str], progress: bool
) -> None:
    common: dict[str, Any] = {"data_root": data_root, "overrides": tuple(overrides), "progress": progress}
    resume = (folder / train.CHECKPOINT).exists()
    weights = train.main(path, output=folder, resume=resume, **common)
    if weights.name == train.CHECKPOINT:
        raise KeyboardInterrupt
    model = models.load(weights)
    split = recipe.data.test or recipe.data.val
    instances = hasattr(model, "objects") or recipe.data.name == "nuclei"
    scores = evaluate.main(path, weights, split=split, ap=instances, widths=(WIDTH,), **common)
    assert scores.boundary is not None
    state = torch.load(folder / train.CHECKPOINT, weights_only=True)
    values: dict[str, Any] = {
        "recipe": _plain(recipe),
        "split": split,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": state["step"],
        "seconds": state["seconds"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": "cpu" if recipe.device == "auto" and not torch.cuda.is_available() else recipe.device,
        "summary": scores.summary(),
        "pixel_accuracy": scores.matrix.pixel_accuracy,
        "boundary_accuracy": scores.boundary.bands[WIDTH].pixel_accuracy,
        "ap": scores.precision.ap if scores.precision is not None else None,
    }
    if recipe.crf:
        values |= _crf_scores(path, weights, split, common)
    values["variants"] = {
        name: _judge(path, weights, variant, split, common) for name, variant in recipe.variants.items()
    }
    values["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    _write(path, folder, values)


def _write(path: Path, folder: Path, values: dict[str, Any]) -> None:
    card, text = _card(path, values), json.dumps(values, indent=1)
    write_atomically(folder / "card.md", lambda name: Path(name).write_text(card))
    write_atomically(folder / SCORES, lambda name: Path(name).write_text(text))


def _add_missing(
    path: Path,
    recipe: Config,
    folder: Path,
    data_root: str | None,
    overrides: Sequence[str],
    progress: bool,
    say: Callable[[str], object],
) -> None:
    """Adds scores that an earlier version did not compute."""
    values = json.loads((folder / SCORES).read_text())
    if not recipe.crf or {"crf", "tuned_crf"} <= {*values}:
        return
    say(f"{path}: with a CRF")
    common = {"data_root": data_root, "overrides": tuple(overrides), "progress": progress}
    values |= {"recipe": _plain(recipe), **_crf_scores(path, folder / train.WEIGHTS, values["split"], common)}
    _write(path, folder, values)


def _crf_scores(path: Path, weights: Path, split: str, common: dict[str, Any]) -> dict[str, Any]:
    """The scores refined by the CRF of the weights, and by one whose settings are searched on validation images."""
    plain = evaluate.main(path, weights, split=split, crf=True, **common)
    tuned = tune_crf.main(path, weights, judged=split, **common)
    refined = evaluate.main(path, weights, split=split, crf=DenseCRF(**tuned.settings), **common)
    tuned_crf = {"miou": refined.matrix.mean_iou, **dataclasses.asdict(tuned)}
    return {"crf": plain.matrix.mean_iou, "tuned_crf": tuned_crf}


def _judge(path: Path, weights: Path, variant: Variant, split: str, common: dict[str, Any]) -> dict[str, Any]:
    """The scores of a variant with the same weights; arguments are passed as JSON, which is valid YAML."""
    other = (f"model.arguments.{key}={json.dumps(value)}" for key, value in variant.arguments.items())
    options = {**common, "overrides": (*common["overrides"], *other), "scales": variant.scales, "flip": variant.flip}
    scores = evaluate.main(path, weights, split=split, widths=(WIDTH,), **options)
    assert scores.boundary is not None
    return {
        "miou": scores.matrix.mean_iou,
        "pixel_accuracy": scores.matrix.pixel_accuracy,
        "boundary_accuracy": scores.boundary.bands[WIDTH].pixel_accuracy,
    }


def _card(path: Path, values: dict[str, Any]) -> str:
    """A draft of the model card for atrousops/weights; the limits must be added by hand."""
    recipe, summary = values["recipe"], values["summary"]
    data, network = recipe["data"], recipe["model"]
    figures = [f"| {name} | {100 * value:.1f} % |" for name, value in summary.items()]
    arguments = ", ".join(f"{key}={value!r}" for key, value in network["arguments"].items())
    lines = [
        f"# {path.parent.name}_{path.stem}",
        "",
        f"`atrousops.models.{network['name']}({arguments})`, {values['parameters'] / 1e6:.2f} M parameters. Input: "
        f"RGB in 0..1, less {data['mean']}, divided by {data['std']}.",
        "",
        f"Trained on the split {data['train']!r} of `{data['name']}` by `{path.parent.name}/{path.name}`: "
        f"{values['steps']} steps of {recipe['batch']} images, seed {recipe['seed']}, {values['seconds'] / 60:.0f} "
        f"minutes on {values['device']}, {values['threads']} threads, torch {values['torch']}.",
        "",
        f"On the split {values['split']!r}, images whole:",
        "",
        "| | |",
        "|---|---|",
        *figures,
        f"| pixel accuracy | {100 * values['pixel_accuracy']:.1f} % |",
        "",
        f"sha256 of the weights: {values['sha256']}",
    ]
    return "\n".join(lines) + "\n"


def _plain(recipe: Config) -> Any:
    """The recipe after conversion to JSON and back."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


# Entries of `init` in an earlier version.
_GONE = ("how", "images", "side")


def _check_same(folder: Path, recipe: Config) -> None:
    # Read as a recipe, because earlier versions had other entries.
    values = json.loads((folder / SCORES).read_text())["recipe"]
    values["init"] = {key: value for key, value in values["init"].items() if key not in _GONE}
    # A CRF is no part of the training; its scores are added to the run's.
    values["crf"] = recipe.crf
    if _plain(configs.parse(values)) != _plain(recipe):
        bad_value("study", "recipe", f"be that of the run in {folder}", "another", "Remove the folder to run it again.")
