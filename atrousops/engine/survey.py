"""Statistics of a folder of images and masks: sizes, channels, depth, mean and deviation, pixels per class."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from atrousops.common.checks import bad_value
from atrousops.data.bands import Pixels, samples_of
from atrousops.data.decode import PictureError
from atrousops.data.files import Files

Id = int | tuple[int, int, int]
# More than this are not classes, but blended or compressed colours.
MOST_COLOURS = 64


class Kind(NamedTuple):
    """dtype, channels; photo: whether Pillow would convert it to RGB."""

    dtype: str
    channels: int
    photo: bool

    def __str__(self) -> str:
        return f"{self.dtype} of {self.channels} channel{'s' * (self.channels > 1)}"


@dataclass
class Survey:
    """The statistics.

    sizes: (height, width) of each image.
    kinds: kinds of images, with one file and the count of each.
    low, high: range of the stored numbers.
    pixels, shown, first: for each id or colour, its number of pixels, the number of masks that contain it, and the
        first of them.
    problems: one line for each file that cannot be used.
    named: the file of class names, and the number of names.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    kinds: dict[Kind, tuple[str, int]] = field(default_factory=dict)
    low: float = math.inf
    high: float = -math.inf
    pixels: Counter[Id] = field(default_factory=Counter)
    shown: Counter[Id] = field(default_factory=Counter)
    first: dict[Id, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    named: tuple[str, int] = ("", 0)
    # For each number of channels: the number of pixels, their sum, and the sum of their squares.
    _sums: dict[int, tuple[int, np.ndarray, np.ndarray]] = field(default_factory=dict)
    # Masks of ids, masks of colours, the mask with which there are too many colours, and masks with unnamed ids.
    _masks: dict[bool, list[str]] = field(default_factory=lambda: {False: [], True: []})
    _over: str = ""
    _beyond: list[str] = field(default_factory=list)

    def add_image(self, files: Files, name: str) -> tuple[int, int]:
        """Reads an image; returns its size. Raises PictureError."""
        samples = samples_of(io.BytesIO(files.read(name)), files.place(name))
        if samples.dtype.kind not in "uif" or not np.isfinite(samples).all():
            # Called for its error message.
            files.image(name, Pixels(samples.shape[2], 1.0))
        # The channels of a TIFF with two or four may mean anything.
        array, tiff = name.lower().endswith(".npy"), name.lower().endswith((".tif", ".tiff"))
        photo = samples.dtype == np.uint8 and not array and not (tiff and samples.shape[2] not in (1, 3))
        kind = Kind(str(samples.dtype), samples.shape[2], photo)
        first, count = self.kinds.get(kind, (files.place(name), 0))
        self.kinds[kind] = first, count + 1
        self.low, self.high = min(self.low, float(samples.min())), max(self.high, float(samples.max()))
        self._add(samples)
        if photo and samples.shape[2] != 3:
            # Also as RGB, to which it is converted if other images are RGB.
            self._add(files.image(name))
        self.sizes.append((samples.shape[0], samples.shape[1]))
        return samples.shape[0], samples.shape[1]

    def _add(self, samples: np.ndarray) -> None:
        values = samples.reshape(-1, samples.shape[2]).astype(np.float64)
        count, total, squares = self._sums.get(samples.shape[2], (0, np.zeros(1), np.zeros(1)))
        self._sums[samples.shape[2]] = count + len(values), total + values.sum(0), squares + (values**2).sum(0)

    def add_mask(self, files: Files, name: str, size: tuple[int, int]) -> None:
        """Reads a mask for an image of the given size. Raises PictureError."""
        try:
            ids = files.mask(name)
        except PictureError as error:
            if "mode is RGB" not in str(error):
                raise
            colours = files.colours(name)
            shape, there, counts = colours.shape[:2], *np.unique(colours.reshape(-1, 3), axis=0, return_counts=True)
            found: list[Id] = [(int(r), int(g), int(b)) for r, g, b in there]
        else:
            shape, there, counts = ids.shape, *np.unique(ids, return_counts=True)
            found = [int(id) for id in there]
        if shape != size:
            turned = "; perhaps its EXIF turns the image and not the mask" if shape == size[::-1] else ""
            raise PictureError(f"{files.place(name)}: {shape[0]} x {shape[1]}, its image {size[0]} x {size[1]}{turned}")
        place = files.place(name)
        for id, count in zip(found, counts.tolist()):
            self.pixels[id] += count
            self.shown[id] += 1
            self.first.setdefault(id, name)
        self._masks[isinstance(found[0], tuple)].append(place)
        if self.coloured and len(self.pixels) > MOST_COLOURS:
            self._over = self._over or place
        file, names = self.named
        nameless = [str(id) for id in found if isinstance(id, int) and not _has_name(id, names)]
        if nameless:
            more = f" and {len(nameless) - 5} more" if len(nameless) > 5 else ""
            self._beyond.append(f"{place}: ids {', '.join(nameless[:5])}{more}, where {file} names 0-{names - 1}")

    def check_ids(self) -> None:
        """Adds problems that concern all masks."""
        fewer, most = sorted(self._masks.values(), key=len)
        if fewer:
            kinds = ("ids", "colours") if self._masks[False] is fewer else ("colours", "ids")
            kind = f"holds {kinds[0]}, where {len(most)} masks hold {kinds[1]}, such as {most[0]}"
            self.problems += [f"{place}: {kind}" for place in fewer]
        elif self._over:
            self.problems.append(
                f"the masks hold {len(self.pixels)} colours, too many for classes, as compressed or resized masks do; "
                f"{self._over} is the first with which there are more than {MOST_COLOURS}"
            )
        elif len(self._beyond) * 2 < len(most):
            # If most masks do not match the file of names, it is about something else.
            self.problems += self._beyond

    @property
    def coloured(self) -> bool:
        return any(isinstance(id, tuple) for id in self.pixels)

    def reading(self) -> Pixels:
        """The settings for reading the images.

        Raises:
            ArgumentError: they are of different kinds.
        """
        if all(kind.photo for kind in self.kinds):
            return Pixels(1 if {kind.channels for kind in self.kinds} == {1} else 3)
        if len(self.kinds) > 1:
            # Greys and images with alpha can be combined with RGB.
            groups: dict[str, tuple[str, int]] = {}
            for kind, (file, count) in self.kinds.items():
                name = "8 bits" if kind.photo else str(kind)
                first, before = groups.get(name, (file, 0))
                groups[name] = first, before + count
            kinds = "; ".join(f"{count} of {name}, such as {file}" for name, (file, count) in groups.items())
            bad_value("recipe", "images", "be of one kind", kinds, "Convert them to one depth and number of channels.")
        (kind,) = self.kinds
        return Pixels(kind.channels, None if kind.dtype == "uint8" else self._white(kind.dtype))

    def _white(self, dtype: str) -> float:
        most = max(abs(self.low), abs(self.high))
        if dtype.startswith("uint") and most < 65536:
            return float(next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if most < 2**bits))
        if most <= 1:
            return 1.0
        step = 10.0 ** (math.floor(math.log10(most)) - 1)
        return math.ceil(most / step) * step

    def statistics(self, reading: Pixels) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, over all pixels, for images in 0..1; deviation 1 if constant."""
        white = reading.scale or 255.0
        count, total, squares = self._sums[reading.channels]
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return [_rounded(m / white) for m in mean], [_rounded(s / white) or 1.0 for s in std]


def survey(
    files: Files, pairs: Sequence[tuple[str, str]], named: tuple[str, int] = ("", 0), progress: bool = True
) -> Survey:
    """Reads all images and masks.

    Args:
        files: the folder.
        pairs: pairs of image and mask.
        named: the file of class names, and the number of names.
        progress: draw a progress bar.
    """
    found = Survey(named=named)
    for image, mask in tqdm(pairs, desc="survey", disable=None if progress else True, leave=False):
        try:
            found.add_mask(files, mask, found.add_image(files, image))
        except (PictureError, FileNotFoundError) as error:
            found.problems.append(str(error))
    found.check_ids()
    return found


def classes_of(found: Survey, names: Sequence[str] = ()) -> tuple[list[str], dict[Id, str], str]:
    """The classes, the meaning of each id or colour, and a description of the guesses.

    Args:
        found: the statistics.
        names: from a file of class names; ids are then their indices.
    """
    ids = sorted(found.pixels, key=lambda id: id if isinstance(id, tuple) else (id,))
    numbers = [id for id in ids if isinstance(id, int)]
    words = "guessed names"
    if names and (given := _by_names(numbers, names)):
        return [name for name in names if name.lower() != "void"], *given
    if names:
        what = f"ids {', '.join(map(str, numbers[:5]))}" if numbers else "colours"
        words += f"; the {len(names)} of the file of class names do not go with {len(ids)} {what}"
    if len(ids) == 2 and ids[0] in (0, (0, 0, 0)):
        return ["background", "foreground"], {ids[0]: "background", ids[1]: "foreground"}, words
    void = 255 if 255 in numbers and len(numbers) > 2 else None
    if void and _are_shades(numbers):
        void = None
        words += "; 255 is taken for a class, as the ids are shades of grey, evenly spaced"
    elif void:
        words += "; 255 is taken for void"
    meaning = {id: "void" if id == void else _name(id) for id in ids}
    return [name for name in meaning.values() if name != "void"], meaning, words


def _by_names(numbers: Sequence[int], names: Sequence[str]) -> tuple[dict[Id, str], str] | None:
    """The meaning of each id by a file of class names, and a description; None if they do not match."""
    words = "names by the file of class names"
    every = ["void" if name.lower() == "void" else name for name in names]
    # Masks of 0 and 255 are made for viewing: with two names, 255 is the second class, not void.
    drawn = len(numbers) == 2 and numbers[1] == 255
    if numbers and all(_has_name(id, len(names)) for id in numbers) and not (drawn and len(names) == 2):
        # Including classes in no mask.
        meaning: dict[Id, str] = dict(enumerate(every))
        void = [id for id in numbers if id >= len(names)]
        return meaning | dict.fromkeys(void, "void"), words + ("; 255 is taken for void" if void else "")
    if len(numbers) == len(names):
        return dict(zip(numbers, every)), f"{words}, in the order of the ids"
    return None


def _has_name(id: int, names: int) -> bool:
    """Whether an id is the index of one of `names` names, or 255; always if there are no names."""
    return not names or 0 <= id < names or id == 255


def _are_shades(ids: Sequence[int]) -> bool:
    """Whether a few ids go from 0 to 255 in equal steps, as in masks made for viewing: 0, 128, 255."""
    last = len(ids) - 1
    return last < 16 and all(abs(id - 255 * k / last) <= 1 for k, id in enumerate(ids))


def _name(id: Id) -> str:
    if isinstance(id, tuple):
        return "background" if id == (0, 0, 0) else "colour_{:02x}{:02x}{:02x}".format(*id)
    return "background" if id == 0 else f"class_{id}"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
