"""`atrousops recipe`: a checked recipe for a user's images and masks, from the content of their folder."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import yaml

from atrousops import models
from atrousops.common.checks import bad_choice, bad_value
from atrousops.common.places import absent, place
from atrousops.data import Folder, Layout, Pixels
from atrousops.data.files import Files
from atrousops.data.folder import SHOWN, refuse
from atrousops.engine import config as configs
from atrousops.engine import layouts, outputs
from atrousops.engine.layouts import Guess
from atrousops.engine.survey import Id, Survey, classes_of, survey

HELD_BACK = 0.2
MANY = 60
Say = Callable[[str], object]


def main(
    data: str,
    model: str,
    *,
    images: str | None = None,
    masks: str | None = None,
    say: Say = lambda text: None,
    progress: bool = True,
) -> str:
    """The text of a recipe.

    Args:
        data: folder or zip archive of the images and masks.
        model: a network of `atrousops.models`, or of another package.
        images, masks: patterns as in `Layout`; guessed if None.
        say: called with messages about what was found and guessed.
        progress: draw a progress bar.

    Raises:
        ArgumentError: no such network or folder; there are no images with masks; files cannot be read or do not fit.
    """
    networks = models.registry.list("networks")
    if model not in networks:
        bad_choice("recipe", "--model", networks, model)
    make = models.registry.factory(model)
    if (images is None) != (masks is None):
        bad_value("recipe", "--images and --masks", "be given together", "one of them")
    if not place(data, "--data").exists():
        bad_value("recipe", "--data", "be a folder or a zip archive", absent(data))
    files = Files(data)
    where = layouts.guess(files) if images is None or masks is None else layouts.of_patterns(files, images, masks)
    found = _Found(data, files, where)
    say(f"images are {where.images}, masks are {where.masks}" + ("" if images else " (guessed)"))
    named = (found.named[0], len(found.named[1])) if found.named else ("", 0)
    facts = survey(files, [pair for split in found.splits.values() for pair in split.values()], named, progress)
    if facts.problems:
        for problem in facts.problems if len(facts.problems) > SHOWN else ():
            say(problem)
        refuse("recipe", facts.problems)
    reading = facts.reading()
    text = _text(found, facts, reading, model, say)
    recipe = configs.parse(yaml.safe_load(text))
    for split in (recipe.data.train, recipe.data.val):
        classes = outputs.open_set(recipe, data, split).classes
    outputs.check_recipe(recipe, classes)
    with torch.device("meta"):
        network = make(**recipe.model.arguments)
    if hasattr(network, "objects") or hasattr(network, "loss"):
        remedy = "Take one of classes, such as deeplabv3plus_resnet50."
        bad_value("recipe", "--model", "be trained on classes of pixels", f"{model}, which finds objects", remedy)
    return text


class _Found:
    """The pairs of each split, and files without a partner."""

    def __init__(self, data: str, files: Files, where: Guess) -> None:
        self.data, self.where = data, where
        self.lists = layouts.lists(files) if not where.train else None
        names = [name for name in (where.train, where.val, where.test) if name] or ["all"]
        self.splits: dict[str, dict[str, tuple[str, str]]] = {}
        self.alone: list[str] = []
        self.masks_alone: list[str] = []
        layout = Layout(images=where.images, masks=where.masks, classes=("any",), unpaired="skip")
        for name in names:
            images, masks = Folder(data, name, layout=layout).found()
            self.splits[name] = {key: (images[key], masks[key]) for key in images if key in masks}
            self.alone += [images[key] for key in images if key not in masks]
            self.masks_alone += [masks[key] for key in masks if key not in images]
        self.named = layouts.class_names(files)

    def sharing(self, say: Say) -> dict[str, Any]:
        """The entries of the recipe that define the splits."""
        if self.where.train:
            splits = {"train": self.where.train, "val": self.where.val}
            say(f"splits are folders: {', '.join(self.splits)}")
            return splits | ({"test": self.where.test} if self.where.test else {})
        if self.lists:
            say(f"splits by the lists {self.lists} (guessed)")
            return {"lists": self.lists, "train": "train", "val": "val"}
        keys = list(self.splits["all"])
        if len(keys) < 2:
            bad_value("recipe", "--data", "hold at least two images with masks, one for validation", len(keys))
        # With few images all may be in one split.
        for seed in range(1000):
            layout = Layout(fractions={"val": HELD_BACK}, seed=seed)
            held = sum(layout.split_of(key) == "val" for key in keys)
            if 0 < held < len(keys):
                break
        say(f"no splits found: {held} of {len(keys)} images, by their names, are held out for validation")
        return {"fractions": {"val": HELD_BACK}, "seed": seed, "train": "train", "val": "val"}


def _text(found: _Found, facts: Survey, reading: Pixels, model: str, say: Say) -> str:
    """The recipe as YAML."""
    classes, meaning, words = classes_of(facts, found.named[1] if found.named else ())
    sizes = f"{_range(size[0] for size in facts.sizes)} x {_range(size[1] for size in facts.sizes)} (height x width)"
    kinds = ", ".join(map(str, facts.kinds))
    images = f"{len(facts.sizes)} images with masks, {sizes}; {kinds}, from {facts.low:g} to {facts.high:g}"
    say(images)
    alone = _alone(found, say)
    say(f"{len(classes)} classes ({words}): {_shares(facts, meaning)}")
    if len(classes) > MANY:
        once = Counter(facts.first[id] for id in facts.pixels if facts.shown[id] == 1)
        most = "".join(f"; {count} are in {file} alone" for file, count in once.most_common(1))
        say(f"so many classes: if the masks number objects, give each object its class first{most}")
    data = {"name": "folder", "root": found.data, "images": found.where.images, "masks": found.where.masks}
    data |= found.sharing(say) | ({"unpaired": "skip"} if found.alone else {})
    mean, std = facts.statistics(reading)
    if reading.scale is not None:
        say(f"{reading.scale:g} in the files counts as 1 (scale, guessed from the largest number, {facts.high:g})")
    measured = {"mean": mean, "std": std} | ({"scale": reading.scale} if reading.scale is not None else {})
    arguments: dict[str, Any] = {"num_classes": len(classes)}
    if reading.channels != 3:
        arguments["in_channels"] = reading.channels
    longest = int(statistics.median(max(size) for size in facts.sizes))
    shorter = int(statistics.median(min(size) for size in facts.sizes))
    crop = min(512, max(64, 32 * -(-shorter // 32)))
    batch = max(2, min(8, len(facts.sizes)))
    lines = [
        f"# By `atrousops recipe` for {model} on {found.data}: look at it, then run `atrousops train` with this file.",
        f"# {images}.",
        *(f"# {line}" for line in alone),
        f"model: {{name: {model}, arguments: {_flow(arguments)}}}",
        "# init: {trunk: FILE} # a classifier of torchvision or timm for the encoder; or weights: FILE, of a network",
        "data:",
        *(f"  {key}: {_flow(value)}" for key, value in data.items()),
        f"  # what the masks hold; {words}",
        *(f"  # {line}" for line in _table(facts, meaning)),
        *(f"  {key}: {_flow(value)}" for key, value in _meaning(classes, meaning, facts, found).items()),
        "  # measured on all of these images",
        *(f"  {key}: {_flow(value)}" for key, value in measured.items()),
        f"augmentation: {{crop: {crop}, size: {longest}, scale: [0.5, 1.5]}} # size: longest side at scale 1, pixels",
        "loss: {name: cross_entropy} # or dice, lovasz, focal; weights: median_frequency for rare classes",
        "optimiser: {lr: 1.0e-3, backbone_lr: 1.0e-3} # with init.trunk, backbone_lr: 1.0e-4",
        "schedule: {steps: 1000, kind: poly, warmup: 20}",
        f"batch: {batch}",
        "validate_every: 100",
    ]
    return "\n".join(lines) + "\n"


def _alone(found: _Found, say: Say) -> list[str]:
    lines = []
    if found.alone:
        lines.append(f"images without a mask, skipped: {len(found.alone)}: {_some(found.alone)}")
    if found.masks_alone:
        lines.append(f"masks without an image: {len(found.masks_alone)}: {_some(found.masks_alone)}")
    for line in lines:
        say(line)
    return lines


def _meaning(classes: Sequence[str], meaning: dict[Id, str], facts: Survey, found: _Found) -> dict[str, Any]:
    """The entries of the recipe that define the meaning of masks."""
    if facts.coloured:
        return {"colours": {name: list(id) for id, name in meaning.items() if isinstance(id, tuple)}}
    named = found.named is not None and list(found.named[1]) == list(classes)
    entries: dict[str, Any] = {"classes": found.named[0] if found.named and named else list(classes)}
    plain = {number: name for number, name in enumerate(classes)} | {255: "void"}
    if any(plain.get(int(id)) != name for id, name in meaning.items() if isinstance(id, int)):
        entries["ids"] = dict(meaning)
    return entries


def _table(facts: Survey, meaning: dict[Id, str]) -> list[str]:
    total = sum(facts.pixels.values())
    return [
        f"{_id(id)}: {name}, {facts.pixels[id]} pixels ({facts.pixels[id] / total:.2%}), {_where(facts, id)}"
        for id, name in meaning.items()
    ]


def _where(facts: Survey, id: Id) -> str:
    """How often an id occurs; an id in a single mask may be a mistake."""
    return f"in {facts.shown[id]} images" if facts.shown[id] != 1 else f"in {facts.first[id]} alone"


def _shares(facts: Survey, meaning: dict[Id, str]) -> str:
    total = sum(facts.pixels.values())
    return _some([f"{_id(id)} {name} {facts.pixels[id] / total:.2%}" for id, name in meaning.items()])


def _id(id: Id) -> str:
    return str(list(id)) if isinstance(id, tuple) else str(id)


def _range(values: Any) -> str:
    every = sorted(values)
    return f"{every[0]}" if every[0] == every[-1] else f"{every[0]}-{every[-1]}"


def _some(names: Sequence[str], count: int = 10) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()
