"""A user's own images and masks, in folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from atrousops.common.checks import ArgumentError, bad_value
from atrousops.common.places import Remote, absent, place
from atrousops.data.base import VOID, Sample, SegmentationSet
from atrousops.data.decode import EXACT, ID_MODES
from atrousops.data.files import Files
from atrousops.data.heads import Head, head_of
from atrousops.data.patterns import Pattern, composed

# Its name in messages.
_ROOT = "--data or data.root"
_WHERE = "Name another folder by --data, or the patterns of this one: `atrousops recipe --data DIR` finds them."
# The number of files that an error names at most.
SHOWN = 5
# Red, green, blue in 0..255; the number of entries is checked separately, for a better message.
Colour = tuple[int, ...]
_COLOUR_REMEDY = "convert it to ids first, or state in data.colours which class each colour is"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The location of a user's images and masks, and the meaning of the masks. Only for `data.name: folder`.

    images, masks: a folder, or a pattern such as "masks/*_mask.png", below `root`; see `patterns.Pattern`. {split}
        stands for the name of the split: "{split}/images".
    classes: names in the order of the network's outputs, or a text file below `root` with one name per line; by default
        those of `colours`.
    ids: the meaning of the numbers in the masks, such as {0: background, 7: road, 9: void}: a class by its name or
        number, or void. By default, and if `ids` only lists void, numbers are class numbers.
    void: a number in the masks that is void, unless `ids` defines it; null for none.
    colours: the colours of the masks, such as {road: [128, 64, 128], void: [0, 0, 0]}: one colour per class, or a list
        of them.
    lists: a text file below `root` for each split, with one image name per line: "{split}.txt".
    fractions: the share of the images in each split other than train, such as {val: 0.2, test: 0.1}. An image's split
        depends only on its name and `seed`, so adding images does not move others.
    seed: for the fractions.
    unpaired: "refuse" images without a mask, or "skip" them.
    """

    images: str | None = None
    masks: str | None = None
    classes: tuple[str, ...] | str | None = None
    ids: dict[int, int | str] | None = None
    void: int | None = VOID
    colours: dict[str, Colour | tuple[Colour, ...]] | None = None
    lists: str | None = None
    fractions: dict[str, float] | None = None
    seed: int = 0
    unpaired: str = "refuse"

    def check(self) -> None:
        """Raises ArgumentError unless the layout is complete."""
        for key in ("images", "masks"):
            if not getattr(self, key):
                remedy = f"Such as {key}: {key}. `atrousops recipe --data DIR --model NAME` finds it out."
                bad_value(
                    "config", f"data.{key}", "be a folder or a pattern of files for data.name: folder", "none", remedy
                )
        if self.classes is None and self.colours is None:
            remedy = "Such as classes: [background, road]."
            bad_value("config", "data.classes", "be the names of the classes, or a file of them", "none", remedy)
        if self.ids is not None and self.colours is not None:
            bad_value(
                "config", "data.ids and data.colours", "not both be given", "both", "A mask has one or the other."
            )
        for name, colours in (self.colours or {}).items():
            if not all(len(c) == 3 and min(c) >= 0 and max(c) <= 255 for c in _colours(colours)):
                rule = "be [red, green, blue] in 0..255, or a list of such"
                bad_value("config", f"data.colours.{name}", rule, colours)
        if self.unpaired not in ("refuse", "skip"):
            bad_value("config", "data.unpaired", "be refuse or skip", repr(self.unpaired))
        parts = self.fractions or {}
        if parts and (self.lists or self._named):
            rule = "not be given with lists or {split}, which say it too"
            bad_value("config", "data.fractions", rule, "both")
        if not all(part > 0 for part in parts.values()) or sum(parts.values()) >= 1 or {"train", "all"} & {*parts}:
            rule = "be parts above 0, below 1 in all, of other splits than train"
            bad_value("config", "data.fractions", rule, parts, "Such as {val: 0.2}.")

    @property
    def _named(self) -> bool:
        return "{split}" in f"{self.images}{self.masks}"

    def splits(self, asked: Sequence[str]) -> tuple[str, ...]:
        """The names of the splits: those of the fractions, or any if folders or lists are named by {split}."""
        if self.lists or self._named:
            return tuple(asked)
        return ("train", *self.fractions, "all") if self.fractions else ("all",)

    def split_of(self, key: str) -> str:
        """The split of an image, by its key: determined by a number in [0, 1) from the SHA-256 of seed and key."""
        text = f"{self.seed}:{composed(key)}"
        place = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64
        for split, part in (self.fractions or {}).items():
            if place < part:
                return split
            place -= part
        return "train"


class Folder(SegmentationSet):
    """A user's images and masks, described by a `Layout`.

    Args:
        root: the folder, or a zip archive.
        split: one of those of the layout.
        transform: as for `SegmentationSet`.
        layout: the location and meaning of the files.

    Raises:
        ArgumentError: as `SegmentationSet`; the layout is incomplete; there are no such images; an image has no mask; a
            split is empty.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        split: str = "train",
        transform: Callable[[Any, Any], Sample] | None = None,
        *,
        layout: Layout,
    ) -> None:
        layout.check()
        self.layout = layout
        self.splits = layout.splits((split,))
        if split not in self.splits and self.splits == ("all",):
            remedy = 'Define the splits: fractions: {val: 0.2}, lists: "{split}.txt" or images: "{split}/images".'
            bad_value("data", "split", "be all, as neither fractions, lists nor {split} is given", repr(split), remedy)
        super().__init__(root, split, transform)

    def _open(self, root: str | os.PathLike[str] | None) -> Files:
        if root is None:
            bad_value("data", _ROOT, "be the folder that holds the images", "none")
        where = place(root, _ROOT)
        if not where.exists():
            bad_value("data", _ROOT, "be a folder or a zip archive", absent(root))
        files = Files(where)
        self.classes = self._class_names(files)
        self._table = self._classes_of_ids()
        self._colours = self._classes_of_colours()
        return files

    def _list(self) -> list[str]:
        images, masks = self.found()
        if not {*images} & {*masks}:
            rule = f"have the names of the images, such as {_few(images)}"
            bad_value("data", "masks", rule, _few(masks), "Name both by patterns: masks: 'masks/*_mask.png'.")
        missing = [images[key] for key in images if key not in masks]
        if missing and self.layout.unpaired == "refuse":
            remedy = "Add their masks, or set data.unpaired=skip to leave these images out."
            bad_value("data", "images", f"each have a mask like {self._pattern('masks').text}", _few(missing), remedy)
        self._pairs = {key: (image, masks[key]) for key, image in images.items() if key in masks}
        return self._of_split(images)

    def found(self) -> tuple[dict[str, str], dict[str, str]]:
        """The image files and the mask files, by their keys.

        Raises:
            ArgumentError: there are none, or two have the same key.
        """
        masks = self._files("masks")
        taken = {*masks.values()}
        images = {key: file for key, file in self._files("images").items() if file not in taken}
        if not images:
            bad_value("data", "images", "be other files than the masks", f"{self._pattern('images').text} for both")
        return images, masks

    def look(self, names: Iterable[str]) -> None:
        """As `SegmentationSet.look`: checks sizes, kinds and ends of the files; suspicious files are decoded."""
        problems = []
        # In an object store each check is a request.
        for name in () if isinstance(self.files.path, Remote) else names:
            try:
                if not self._looks_right(name):
                    self.read(name)
            except (ArgumentError, OSError) as error:
                problems.append(str(error).rstrip("."))
        if problems:
            refuse("data", problems)

    def _looks_right(self, name: str) -> bool:
        image, mask = (self._head(file) for file in self._paths(name))
        if image is None or mask is None:
            return False
        exact = mask.format in EXACT and (self.layout.colours is not None or mask.mode in ID_MODES)
        return image[:2] == mask[:2] and (exact or mask.format == "NPY")

    def _head(self, file: str) -> Head | None:
        with self.files.open(file) as stream:
            return head_of(stream, file, self.pixels.channels)

    def _pattern(self, what: str) -> Pattern:
        return Pattern(str(getattr(self.layout, what)).replace("{split}", self.split))

    def _files(self, what: str) -> dict[str, str]:
        pattern = self._pattern(what)
        names = self.files.walk(pattern.folder)
        found = pattern.keys(what, names)
        if not found:
            there = _few(names) if names else _few(self.files.walk())
            where = f"{pattern.folder} holds {there}" if names else f"{self.files.path} holds {there}"
            bad_value("data", what, f"be files like {pattern.text} in {self.files.path}", f"none: {where}", _WHERE)
        return found

    def _of_split(self, images: Mapping[str, str]) -> list[str]:
        if self.layout.lists:
            return self._listed(images)
        keys = list(self._pairs)
        if self.layout.fractions and self.split != "all":
            keys = [key for key in keys if self.layout.split_of(key) == self.split]
            if not keys:
                got = f"none of {len(self._pairs)} by seed {self.layout.seed}"
                remedy = "Take another data.seed, larger fractions, or lists."
                bad_value("data", f"the split {self.split!r}", "hold images", got, remedy)
        return keys

    def _listed(self, images: Mapping[str, str]) -> list[str]:
        """The keys of the images in the list, which names them by key, file name or path, with or without suffix."""
        listing = str(self.layout.lists).replace("{split}", self.split)
        folder = self._pattern("images").folder
        known: dict[str, str] = {}
        for key, file in images.items():
            inside = str(PurePosixPath(file).relative_to(folder))
            for alias in (file, inside, os.path.splitext(file)[0], os.path.splitext(inside)[0], key):
                known[composed(alias)] = key
        keys: dict[str, None] = {}
        for number, line in enumerate(_lines(self.files, listing), start=1):
            if not line.strip():
                continue
            if (name := known.get(composed(line.strip().removeprefix("./")))) is None:
                rule = f"name an image like {_few(images)}"
                bad_value("data", f"line {number} of {self.files.place(listing)}", rule, repr(line.strip()))
            if name in self._pairs:
                keys[name] = None
        return list(keys)

    def _expected(self) -> str:
        listing = f" that {self.layout.lists} names" if self.layout.lists else ""
        return f"images like {self.layout.images}{listing} with masks like {self.layout.masks}"

    def _paths(self, name: str) -> tuple[str, str]:
        return self._pairs[name]

    def _class_names(self, files: Files) -> tuple[str, ...]:
        given = self.layout.classes
        if isinstance(given, str):
            given = tuple(line.strip() for line in _lines(files, given) if line.strip())
        elif given is None:
            given = tuple(name for name in self.layout.colours or {} if name != "void")
        if not given or len({*given}) != len(given) or "void" in given:
            bad_value("data", "classes", "be names, each once, none of them void", ", ".join(given) or "none")
        return tuple(given)

    def _class(self, where: str, value: int | str) -> int:
        """The index of a class given by name or number."""
        if value == "void":
            return VOID
        if isinstance(value, int) and 0 <= value < len(self.classes):
            return value
        if value not in self.classes:
            rule = f"be void, or one of the {len(self.classes)} classes {', '.join(self.classes)}, by name or number"
            bad_value("data", where, rule, repr(value))
        return self.classes.index(str(value))

    def _classes_of_ids(self) -> dict[int, int]:
        table = {} if self.layout.void is None else {self.layout.void: VOID}
        given = {id: self._class(f"ids.{id}", value) for id, value in (self.layout.ids or {}).items()}
        if all(number == VOID for number in given.values()):
            table |= {number: number for number in range(len(self.classes))}
        return table | given

    def _classes_of_colours(self) -> dict[int, int]:
        table: dict[int, int] = {}
        for name, colours in (self.layout.colours or {}).items():
            number = self._class("colours", name)
            for colour in _colours(colours):
                code = sum(part << 8 * place for place, part in enumerate(colour))
                if table.setdefault(code, number) != number:
                    bad_value("data", "colours", "be of one class each", f"{list(colour)} twice")
        return table

    def _known(self) -> Mapping[int, int]:
        return self._table

    def _labels(self, mask: str) -> Tensor:
        if self.layout.colours is None:
            return self._relabel(mask, self.files.mask(mask, _COLOUR_REMEDY))
        codes = self.files.colours(mask).astype(np.int64) @ np.array([1, 256, 65536])
        there, inverse = np.unique(codes, return_inverse=True)
        unknown = [code for code in there.tolist() if code not in self._colours]
        if unknown:
            rows, columns = np.nonzero(codes == unknown[0])
            colour = [unknown[0] >> shift & 255 for shift in (0, 8, 16)]
            got = f"{colour} at row {rows[0]}, column {columns[0]}, and {len(unknown)} such colours in all"
            remedy = f"Add it: colours: {{void: {colour}}}, say."
            bad_value("data", self.files.place(mask), "hold the colours of data.colours alone", got, remedy)
        classes = np.array([self._colours[code] for code in there.tolist()], dtype=np.int64)
        return torch.from_numpy(classes[inverse].reshape(codes.shape))

    def _remedy(self, id: int) -> str:
        return f"Add to data.ids what it is, such as {{{id}: void}}."


def refuse(op: str, problems: Sequence[str]) -> NoReturn:
    """Raises ArgumentError for images and masks that cannot be used, with one reason each."""
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    rule = "be files that can be used, each with a mask of its size"
    bad_value(op, "images and masks", rule, "; ".join(problems[:SHOWN]) + more, "Repair or remove them.")


def _colours(given: Colour | tuple[Colour, ...]) -> tuple[Colour, ...]:
    """One colour or several, as a list."""
    several = tuple(colour for colour in given if isinstance(colour, tuple))
    return several or (tuple(part for part in given if isinstance(part, int)),)


def _lines(files: Files, name: str) -> list[str]:
    # Bytes that are not UTF-8 are kept as in file names.
    return files.read(name).decode("utf-8-sig", "surrogateescape").splitlines()


def _few(names: Iterable[str], count: int = 3) -> str:
    """The first names, and the number of the others."""
    every = list(names)
    more = f" and {len(every) - count} more" if len(every) > count else ""
    return ", ".join(every[:count]) + more if every else "nothing"
