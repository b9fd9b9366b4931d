"""Image files: search in folders, class ids as a palette PNG and as a colour overlay."""

from __future__ import annotations

import colorsys
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from atrousops.common.checks import bad_value
from atrousops.common.files import write_atomically
from atrousops.common.places import Place, place
from atrousops.data.decode import DAMAGE, PictureError, reason

_NOTE = "atrousops"


def picture_files(inputs: Iterable[str | Place], skip: Place | None = None) -> tuple[list[Place], list[PictureError]]:
    """The image files among the inputs, each once, in order; a folder gives the sorted files directly inside it.

    In a folder, hidden files, names without an image suffix, and subfolders are skipped; in the folder `skip` (the
    output folder) also masks and overlays of earlier runs. Pipes and broken links count as files: reading them reports
    the error.

    Returns:
        The files, and one error for each folder that has none or cannot be listed.
    """
    endings = Image.registered_extensions()
    files: dict[Place, Place] = {}
    errors = []
    for path in (place(given, "PHOTO") for given in inputs):
        if not _is_folder(path):
            files.setdefault(_real(path), path)
            continue
        ours = ("_mask", "_overlay") if skip is not None and _real(path) == _real(skip) else ()
        try:
            listed: list[Place] = [*path.iterdir()]
            found = [
                p
                for p in sorted(listed, key=str)
                if p.suffix.lower() in endings
                and not _is_folder(p)
                and not p.name.startswith(".")
                and not p.stem.endswith(ours)
            ]
        except OSError as error:
            errors.append(PictureError(f"{path}: cannot be listed: {reason(error)}"))
            continue
        if not found:
            errors.append(PictureError(f"{path}: no pictures directly in this folder"))
        for p in found:
            files.setdefault(_real(p), p)
    return list(files.values()), errors


def _is_folder(path: Place) -> bool:
    # `Path.is_dir` raises for a link into a folder without permission; one such link must not stop the whole folder.
    return os.path.isdir(path) if isinstance(path, Path) else path.is_dir()


def _real(path: Place) -> Place:
    # `Path.resolve` raises RuntimeError for links in a circle.
    return Path(os.path.realpath(path)) if isinstance(path, Path) else path.resolve()


def result_names(files: Sequence[Place], folder: Place) -> list[str]:
    """A name for the results of each file; no `folder/NAME_mask.png`, `.tif` or `_overlay` repeats or is an input.

    The name is the file's stem, cut to 200 bytes. If stems are equal, the suffix is added (`a.jpg`, `a.png` -> `a_jpg`,
    `a_png`), then a number. Case is ignored, because some file systems ignore it.
    """
    inputs = {str(_real(file)).casefold() for file in files}
    stems = [os.fsdecode(os.fsencode(file.stem)[:200]) for file in files]
    count = Counter(stem.casefold() for stem in stems)
    taken: set[str] = set()

    def is_free(name: str) -> bool:
        kinds = ("mask.png", "overlay.png", "mask.tif", "overlay.tif")
        results = (str((folder / f"{name}_{kind}").resolve()).casefold() for kind in kinds)
        return name.casefold() not in taken and inputs.isdisjoint(results)

    names = []
    for file, stem in zip(files, stems):
        name = base = stem if count[stem.casefold()] == 1 else f"{stem}_{file.suffix[1:]}"
        number = 2
        while not is_free(name):
            name, number = f"{base}_{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def class_colors(classes: Sequence[str]) -> np.ndarray:
    """A colour for each class, uint8 (L, 3), RGB: black for "background", else hues a golden angle apart."""
    colors = np.zeros((len(classes), 3), dtype=np.uint8)
    # Azure first, because it is rare in skin, wood and foliage. Saturation and brightness alternate as hues get closer.
    shades = ((0.9, 1.0), (1.0, 0.65), (0.5, 0.95))
    others = [index for index, name in enumerate(classes) if name != "background"]
    for number, index in enumerate(others):
        hue = (0.56 + number * 0.381966) % 1
        colors[index] = np.rint(255 * np.array(colorsys.hsv_to_rgb(hue, *shades[number % len(shades)])))
    return colors


def mask_image(labels: np.ndarray, colors: np.ndarray) -> Image.Image:
    """Class ids, integer (H, W), as a palette image with the ids as pixel values and the palette `colors` (L, 3).

    Raises:
        ArgumentError: an id has no colour, or does not fit 8 bits.
    """
    image = Image.fromarray(_bytes("mask_image", labels, colors))
    image.putpalette(np.ascontiguousarray(colors).tobytes())
    return image


def overlay_image(
    picture: np.ndarray, labels: np.ndarray, colors: np.ndarray, alpha: float = 0.5, edge: np.ndarray | None = None
) -> Image.Image:
    """The image tinted by class, with contours between classes; a class whose colour is black is not tinted.

    y = (1 - alpha) picture + alpha colors[label]; on the contour the class colour itself, or white for black.

    Args:
        picture: uint8 (H, W, 3).
        labels: integer (H, W), in 0..L-1.
        colors: uint8 (L, 3).
        alpha: the share of the class colour, 0..1.
        edge: mask of the contours, bool (H, W); by default `contours` of the labels.

    Raises:
        ArgumentError: as `mask_image`.
    """
    labels = _bytes("overlay_image", labels, colors)
    black = (colors == 0).all(axis=1)
    share = np.where(black, 0.0, alpha).astype(np.float32)[labels][..., None]
    blended = np.rint(picture * (1 - share) + colors[labels] * share).astype(np.uint8)
    edge = contours(labels) if edge is None else edge
    blended[edge] = np.where(black[:, None], 255, colors).astype(np.uint8)[labels[edge]]
    return Image.fromarray(blended)


def _bytes(op: str, labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Class ids as uint8, checked, because larger ones would wrap around."""
    least, most = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    largest = min(len(colors), 256) - 1
    if labels.dtype.kind not in "iu" or least < 0 or most > largest:
        bad_value(
            op, "labels", f"be class ids in 0..{largest}, as there are colours", f"{labels.dtype} {least}..{most}"
        )
    return np.ascontiguousarray(labels, dtype=np.uint8)


def contours(labels: np.ndarray, radius: int | None = None) -> np.ndarray:
    """True where another class is within `radius` pixels (Chebyshev): bool (H, W).

    radius: by default `contour_radius` of the labels' size.
    """
    radius = contour_radius(labels.shape) if radius is None else radius
    least = most = np.ascontiguousarray(labels, dtype=np.uint8)
    for axis in (0, 1):
        least, most = _running(np.minimum, least, radius, axis), _running(np.maximum, most, radius, axis)
    return np.asarray(least != most)


def contour_radius(shape: Sequence[int]) -> int:
    """Half the width of contours in an image of H x W: about 1/500 of the shorter side."""
    return max(1, round(min(shape) / 500))


def _running(extreme: np.ufunc, values: np.ndarray, radius: int, axis: int) -> np.ndarray:
    """The minimum or maximum of each window of 2 radius + 1 values along an axis, clipped at the ends.

    A window of 2, 4, 8 ... values is computed from two of half its length: the work is logarithmic in the radius.
    """
    ends = [(radius, radius) if each == axis else (0, 0) for each in range(2)]
    # Padding with the first and last value does not change the extreme of a window at the end.
    found = np.moveaxis(np.pad(values, ends, mode="edge"), axis, 0)
    size, length = 2 * radius + 1, 1
    while 2 * length <= size:
        found = extreme(found[:-length], found[length:])
        length *= 2
    rest = size - length
    found = extreme(found[: len(found) - rest], found[rest:])
    return np.moveaxis(found, 0, axis)


def write_png(path: Place, image: Image.Image, note: str | None = None) -> None:
    """Writes `image` to `path` as PNG atomically; raises OutputError as `write_atomically`.

    note: ASCII text that `read_note` reads from the file.
    """
    text = PngInfo()
    if note is not None:
        text.add_text(_NOTE, note)
    write_atomically(path, lambda name: image.save(name, format="PNG", pnginfo=text))


def read_note(path: Place) -> str | None:
    """The note that `write_png` stored in a file, without reading its pixels; None if there is no such file or note."""
    try:
        with path.open("rb") as stream, Image.open(stream) as image:
            return image.info.get(_NOTE)
    except DAMAGE:
        return None
