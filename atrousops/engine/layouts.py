"""Finds the images and masks of a folder, by the names of common layouts and the number of matching pairs."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from atrousops.common.checks import bad_value
from atrousops.data.files import Files
from atrousops.data.patterns import Pattern, endings

TRAIN, VAL, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
IMAGES = ("images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "inputs", "input", "leftimg8bit", "rgb")
MASKS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "annots", "annot", "segmentationclass", "gt"),
    *("groundtruth", "ground_truth", "gtfine", "targets", "target", "segmentations", "segmentation", "seg"),
)
ENDS = ("_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_segmentation", "_annotation", "_labelIds", "_L")
IMAGE_ENDS = ("_image", "_img", "_rgb", "_leftImg8bit")
LISTS = ("", "splits/", "lists/", "ImageSets/", "ImageSets/Segmentation/")
NAMES = ("classes.txt", "labels.txt", "class_names.txt", "label_names.txt", "codes.txt")

_SPLIT = re.compile(
    rf"^({'|'.join(sorted((*TRAIN, *VAL, *TEST), key=len, reverse=True))})"
    rf"(?=$|[_-]|\d|{'|'.join(sorted((*MASKS, *IMAGES), key=len, reverse=True))})",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Guess:
    """images, masks: patterns. train, val, test: names of the splits, or "". pairs: the number of matches."""

    images: str
    masks: str
    pairs: int
    train: str = ""
    val: str = ""
    test: str = ""


def guess(files: Files) -> Guess:
    """The layout with the most images with masks.

    Raises:
        ArgumentError: there is no image, or none with a mask; the message says what was searched for.
    """
    names = _pictures(files)
    if not names:
        there = _some(files.walk()) or "nothing"
        bad_value("recipe", "--data", "hold images", f"{files.path}, which holds {there}")
    candidates = (one for pair in _folders(names) for one in _candidates(names, *pair))
    best = max(candidates, key=_preference, default=None)
    if best is None or not best.pairs:
        looked = (
            f"hold images and masks of the same names: in folders called {_some(IMAGES, 4)} and {_some(MASKS, 6)} "
            f"(any case, also in or around folders {_some((*TRAIN, *VAL, *TEST), 8)}), or masks called as their images "
            f"with {_some(ENDS, 6)}"
        )
        remedy = "Say where they are: --images 'photos/*.jpg' --masks 'truth/*_id.png'."
        bad_value("recipe", "--data", looked, f"{files.path}, which holds {_some(names)}", remedy)
    return best


def of_patterns(files: Files, images: str, masks: str) -> Guess:
    """The layout for given patterns, in which {split} is the name of a split."""
    names = _pictures(files)
    return next(_candidate(tuple(names), images, masks), Guess(images, masks, 0))


def _pictures(files: Files) -> tuple[str, ...]:
    return tuple(name for name in files.walk() if PurePosixPath(name).suffix.lower() in endings())


def _preference(found: Guess) -> tuple[int, bool, bool, int, str]:
    usual = any(part in IMAGES for part in PurePosixPath(found.images.lower()).parts)
    return found.pairs, bool(found.val), usual, -len(found.images + found.masks), found.masks


def _folders(names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Pairs of folders that may hold images and masks, with {split} for the names of splits."""
    every = {str(folder) for name in names for folder in PurePosixPath(_general(name)).parents}
    every = {"" if folder == "." else folder for folder in every}
    for folder in sorted(every):
        yield folder, folder
        if not _is(folder, MASKS):
            continue
        # A sibling, a folder with the same splits, or one level up.
        for other in sorted(every):
            if other != folder and not _is(other, MASKS) and other.count("{split}") == folder.count("{split}"):
                yield other, folder


def _general(name: str) -> str:
    *folders, file = name.split("/")
    return "/".join([*(_SPLIT.sub("{split}", folder, 1) for folder in folders), file])


def _is(folder: str, words: Iterable[str]) -> bool:
    """Whether the folder, or the one that holds its splits, has such a name, possibly with a prefix."""
    parts = [part for part in folder.lower().split("/") if not re.fullmatch(r"\{split\}[\d_-]*", part)]
    return bool(parts) and any(re.fullmatch(rf"(.*[_\-}} ])?{word}", parts[-1]) for word in words)


def _candidates(names: tuple[str, ...], images: str, masks: str) -> Iterator[Guess]:
    if images == masks:
        yield from _by_ending(names, images)
    ends = ENDS if images == masks else ("", *ENDS)
    for image_end in ("", *IMAGE_ENDS):
        first = _pattern(images, image_end)
        for end in ends:
            yield from _candidate(names, first, _pattern(masks, end))


def _by_ending(names: tuple[str, ...], folder: str) -> Iterator[Guess]:
    """Images and masks of the same names in one folder: a.jpg and a.png."""
    kinds = sorted({PurePosixPath(name).suffix.lower() for name in names})
    for one in kinds:
        for two in kinds:
            if one != two and two in (".png", ".bmp", ".gif", ".tif", ".tiff"):
                yield from _candidate(names, _pattern(folder, "", one), _pattern(folder, "", two))


def _candidate(names: tuple[str, ...], images: str, masks: str) -> Iterator[Guess]:
    if "{split}" not in images + masks:
        yield Guess(images, masks, len(_keys(names, images) & _keys(names, masks)))
    elif split := _with_splits(names, images, masks):
        yield split


def _pattern(folder: str, end: str, ending: str = ".*") -> str:
    if not folder:
        return f"*{end}{ending}"
    return folder if end + ending == ".*" else f"{folder}/**/*{end}{ending}"


def _with_splits(names: tuple[str, ...], images: str, masks: str) -> Guess | None:
    """The layout with the names of splits that have pairs; pairs of all splits are counted."""
    pairs = dict[str, int]()
    folders = {folder for name in names for folder in name.split("/")[:-1]}
    spelled = {found.group(1) for found in map(_SPLIT.match, folders) if found}
    for split in sorted(spelled):
        one, two = (text.replace("{split}", split) for text in (images, masks))
        if found := len(_keys(names, one) & _keys(names, two)):
            pairs[split] = found
    train, val, test = ([s for s in pairs if s.lower() in words] for words in (TRAIN, VAL, TEST))
    if not train:
        return None
    if not val and not test:
        # One folder, a part of which will be held out.
        one, two = (text.replace("{split}", train[0]) for text in (images, masks))
        return Guess(one, two, pairs[train[0]])
    return Guess(images, masks, sum(pairs.values()), train[0], (val or test)[0], test[0] if val and test else "")


@lru_cache(maxsize=4096)
def _keys(names: tuple[str, ...], text: str) -> frozenset[str]:
    pattern = Pattern(text)
    start = f"{pattern.folder}/" if pattern.folder else ""
    found = (pattern.key(name[len(start) :]) for name in names if name.startswith(start))
    return frozenset(key for key in found if key)


def lists(files: Files) -> str | None:
    """The pattern of text files that name the images of splits, if they exist for train and val."""
    there = {*files.walk()}
    starts = (f"{top}{at}" for top in _tops(files) for at in LISTS)
    return next((f"{at}{{split}}.txt" for at in starts if {f"{at}train.txt", f"{at}val.txt"} <= there), None)


def class_names(files: Files) -> tuple[str, tuple[str, ...]] | None:
    """A text file of class names at the top level, and its lines."""
    there = {*files.walk()}
    for name in (f"{top}{name}" for top in _tops(files) for name in NAMES):
        if name in there:
            lines = files.read(name).decode("utf-8-sig", "surrogateescape").splitlines()
            return name, tuple(line.strip() for line in lines if line.strip())
    return None


def _tops(files: Files) -> list[str]:
    """The folder itself, and nested folders that hold all images, as in an archive of a folder."""
    folders = {str(PurePosixPath(name).parent) for name in _pictures(files)}
    shared = PurePosixPath(posixpath.commonpath(folders or {"."}))
    return ["", *(f"{folder}/" for folder in reversed((shared, *shared.parents)) if str(folder) != ".")]


def _some(names: Iterable[str], count: int = 5) -> str:
    every = list(names)
    return ", ".join(every[:count]) + (", ..." if len(every) > count else "")
