"""What is in a folder of images and masks: sizes, channels, depth, mean and deviation, classes with their pixels."""

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
# More are no classes but blended or compressed colours.
MOST_COLOURS = 64


class Kind(NamedTuple):
    """dtype, channels; photo: whether Pillow would make RGB of it."""

    dtype: str
    channels: int
    photo: bool

    def __str__(self) -> str:
        return f"{self.dtype} of {self.channels} channel{'s' * (self.channels > 1)}"


@dataclass
class Survey:
    """What was found.

    sizes: (height, width) of each image. kinds: with a file of each kind, and how many there are.
    low, high: of the stored numbers. pixels, shown: of each id or colour of the masks, its pixels, and the images that
    show it. problems: files that cannot be used, each in a line.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    kinds: dict[Kind, tuple[str, int]] = field(default_factory=dict)
    low: float = math.inf
    high: float = -math.inf
    pixels: Counter[Id] = field(default_factory=Counter)
    shown: Counter[Id] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    # Of each number of channels: how many pixels, their sum, and that of their squares.
    _sums: dict[int, tuple[int, np.ndarray, np.ndarray]] = field(default_factory=dict)
    # The first mask of ids, the first of colours, and the one that brought too many of them.
    _first: dict[bool, str] = field(default_factory=dict)
    _over: str = ""

    def add_image(self, files: Files, name: str) -> tuple[int, int]:
        """Reads an image; returns its size. Raises PictureError."""
        samples = samples_of(io.BytesIO(files.read(name)), files.place(name))
        if samples.dtype.kind not in "uif" or not np.isfinite(samples).all():
            # For its words.
            files.image(name, Pixels(samples.shape[2], 1.0))
        # Of two or four channels a TIFF may be anything.
        array, tiff = name.lower().endswith(".npy"), name.lower().endswith((".tif", ".tiff"))
        photo = samples.dtype == np.uint8 and not array and not (tiff and samples.shape[2] not in (1, 3))
        kind = Kind(str(samples.dtype), samples.shape[2], photo)
        first, count = self.kinds.get(kind, (files.place(name), 0))
        self.kinds[kind] = first, count + 1
        self.low, self.high = min(self.low, float(samples.min())), max(self.high, float(samples.max()))
        self._add(samples)
        if photo and samples.shape[2] != 3:
            # As RGB, too, which it becomes where others are.
            self._add(files.image(name))
        self.sizes.append((samples.shape[0], samples.shape[1]))
        return samples.shape[0], samples.shape[1]

    def _add(self, samples: np.ndarray) -> None:
        values = samples.reshape(-1, samples.shape[2]).astype(np.float64)
        count, total, squares = self._sums.get(samples.shape[2], (0, np.zeros(1), np.zeros(1)))
        self._sums[samples.shape[2]] = count + len(values), total + values.sum(0), squares + (values**2).sum(0)

    def add_mask(self, files: Files, name: str, size: tuple[int, int]) -> None:
        """Reads a mask of an image of that size. Raises PictureError."""
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
        for id, count in zip(found, counts.tolist()):
            self.pixels[id] += count
            self.shown[id] += 1
        self._first.setdefault(isinstance(found[0], tuple), files.place(name))
        if self.coloured and len(self.pixels) > MOST_COLOURS:
            self._over = self._over or files.place(name)

    def check_ids(self) -> None:
        """Adds to the problems what is wrong with the masks together."""
        if len(self._first) > 1:
            ids, colours = self._first[False], self._first[True]
            self.problems.append(f"some masks hold ids, such as {ids}, others colours, such as {colours}")
        elif self._over:
            self.problems.append(
                f"the masks hold {len(self.pixels)} colours, too many for classes, as compressed or resized masks do; "
                f"{self._over} is the first with which there are more than {MOST_COLOURS}"
            )

    @property
    def coloured(self) -> bool:
        return any(isinstance(id, tuple) for id in self.pixels)

    def reading(self) -> Pixels:
        """How the images are to be read.

        Raises:
            ArgumentError: they are of different kinds.
        """
        if all(kind.photo for kind in self.kinds):
            return Pixels(1 if {kind.channels for kind in self.kinds} == {1} else 3)
        if len(self.kinds) > 1:
            kinds = "; ".join(f"{count} of {kind}, such as {file}" for kind, (file, count) in self.kinds.items())
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
        """Mean and deviation of each channel, over all pixels, of images in 0..1; of a constant channel 1."""
        white = reading.scale or 255.0
        count, total, squares = self._sums[reading.channels]
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return [_rounded(m / white) for m in mean], [_rounded(s / white) or 1.0 for s in std]


def survey(files: Files, pairs: Sequence[tuple[str, str]], progress: bool = True) -> Survey:
    """Reads all images and masks.

    Args:
        files: the folder.
        pairs: of image and mask.
        progress: draw a progress bar.
    """
    found = Survey()
    for image, mask in tqdm(pairs, desc="survey", disable=None if progress else True, leave=False):
        try:
            found.add_mask(files, mask, found.add_image(files, image))
        except (PictureError, FileNotFoundError) as error:
            found.problems.append(str(error))
    found.check_ids()
    return found


def classes_of(found: Survey, names: Sequence[str] = ()) -> tuple[list[str], dict[Id, str], str]:
    """The classes, what each id or colour is, and in words what was guessed of it.

    Args:
        found: what the masks hold.
        names: of a file of class names; the ids are then their numbers.
    """
    ids = sorted(found.pixels, key=lambda id: id if isinstance(id, tuple) else (id,))
    numbers = [id for id in ids if isinstance(id, int)]
    if names and numbers and all(0 <= id < len(names) or id == 255 for id in numbers):
        # Also those that no mask shows.
        meaning: dict[Id, str] = {id: "void" if name.lower() == "void" else name for id, name in enumerate(names)}
        meaning |= {id: "void" for id in numbers if id >= len(names)}
        return [name for name in names if name.lower() != "void"], meaning, "names by the file of class names"
    if len(ids) == 2 and ids[0] in (0, (0, 0, 0)):
        return ["background", "foreground"], {ids[0]: "background", ids[1]: "foreground"}, "guessed names"
    words = "guessed names"
    void = 255 if 255 in numbers and len(numbers) > 2 else None
    if void and _are_shades(numbers):
        void = None
        words += "; 255 is taken for a class, as the ids are shades of grey, evenly spaced"
    elif void:
        words += "; 255 is taken for void"
    meaning = {id: "void" if id == void else _name(id) for id in ids}
    return [name for name in meaning.values() if name != "void"], meaning, words


def _are_shades(ids: Sequence[int]) -> bool:
    """Whether few ids go from 0 to 255 in equal steps, as masks have them that are to be looked at: 0, 128, 255."""
    last = len(ids) - 1
    return last < 16 and all(abs(id - 255 * k / last) <= 1 for k, id in enumerate(ids))


def _name(id: Id) -> str:
    if isinstance(id, tuple):
        return "background" if id == (0, 0, 0) else "colour_{:02x}{:02x}{:02x}".format(*id)
    return "background" if id == 0 else f"class_{id}"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
