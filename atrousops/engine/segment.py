"""Segmenting files: each picture gives a mask and an overlay in the output folder, the run one list of classes."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atrousops.common.files import write_atomically
from atrousops.data import decode
from atrousops.data.bands import read_picture
from atrousops.engine import pictures
from atrousops.engine.channels import to_rgb
from atrousops.engine.predict import Predictor

COLUMNS = ("picture", "mask", "id", "class", "red", "green", "blue", "pixels", "share")


@dataclass(frozen=True)
class Segmented:
    """One picture done: its files, how many pixels each class has, and the seconds it took."""

    picture: Path
    mask: Path
    overlay: Path
    pixels: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Failed:
    """One picture that could not be segmented, and why, in one line."""

    picture: Path
    reason: str


def segment_files(predictor: Predictor, files: Sequence[Path], folder: Path) -> Iterator[Segmented | Failed]:
    """Segments the files one by one into `folder`: NAME_mask.png (class ids) and NAME_overlay.png.

    A file that cannot be read, or is too large for the memory, gives a `Failed`, and the others go on.

    Raises:
        OutputError: a result could not be written; going on would lose every other one too.
    """
    colors = pictures.class_colors(predictor.classes)
    for path, name in zip(files, pictures.result_names(files, folder)):
        start = time.perf_counter()
        try:
            picture = read_picture(path, predictor.pixels)
            labels = predictor(picture)
        except decode.PictureError as error:
            yield Failed(path, str(error))
            continue
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
                raise
            yield Failed(path, f"{path}: too large for the memory of this machine; a smaller --tile may help")
            continue
        mask, overlay = folder / f"{name}_mask.png", folder / f"{name}_overlay.png"
        pictures.write_png(mask, pictures.mask_image(labels, colors))
        pictures.write_png(overlay, pictures.overlay_image(to_rgb(picture), labels, colors))
        pixels = np.bincount(labels.ravel(), minlength=len(predictor.classes))
        yield Segmented(path, mask, overlay, tuple(map(int, pixels)), time.perf_counter() - start)


def write_classes(path: Path, classes: Sequence[str], done: Sequence[Segmented]) -> None:
    """Writes the class list of a run as CSV (`COLUMNS`): a row for each picture and class, absent classes included.

    `red`, `green`, `blue` are the colour in the mask's palette; `share` is the part of the picture's pixels, 0..1.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    colors = pictures.class_colors(classes)
    for item in done:
        total = sum(item.pixels)
        for index, (name, count) in enumerate(zip(classes, item.pixels)):
            row = [item.picture, item.mask.name, index, name, *colors[index], count, f"{count / total:.6f}"]
            table.writerow(row)
    # surrogateescape: a file name that is not UTF-8 is written byte for byte.
    data = text.getvalue().encode("utf-8", errors="surrogateescape")
    write_atomically(path, lambda name: Path(name).write_bytes(data))
